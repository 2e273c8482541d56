"""What the benchmarks share: interleaved timing, the machine and its limits, ours, the peers, the
report."""
