"""All benchmarks, one after the other, and one page of their results.

    python benchmarks/run.py                                 # small: to see that they run
    python benchmarks/run.py --size full --data-root data    # for the docs

On two cores the first takes nine minutes, the second more than two hours. ``benchmarks/gpu.py`` is
run by itself, on a GPU; the page shows its results too. Each benchmark has a process of its own and
writes its results as soon as it has them. One that fails does not stop the
others; then the command ends with status 1.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.report import ROOT, load, markdown, options

BENCHMARKS = (
    "overhead",
    "data",
    "fid",
    "sampling",
    "train_step",
    "scaling",
    "precision",
    "time_to_quality",
    "ncsn_budget",
    "memory_format",
    "huge_pages",
    "neighbours",
)
LONG = ("huge_pages", "neighbours")
"""Left out at small size unless they are named, so that it ends within ten minutes."""

NEED_DATA = ("precision", "time_to_quality", "ncsn_budget")


def main(argv: Sequence[str] | None = None) -> None:
    """Run those that are asked for and write the page."""
    chosen = options(
        __doc__,
        argv,
        ("--only", {"nargs": "*", "help": "some; none: write the page"}),
        ("--minutes", {"help": "of training, for each competitor of time_to_quality"}),
    )
    if chosen.only is None:
        chosen.only = [name for name in BENCHMARKS if chosen.size == "full" or name not in LONG]
    unknown = set(chosen.only) - set(BENCHMARKS)
    if unknown:
        raise SystemExit(f"--only={unknown.pop()} is unknown; choose from {', '.join(BENCHMARKS)}")
    failed = [name for name in chosen.only if not run(name, words_of(name, chosen))]
    out = Path(chosen.out)
    page = ROOT / "docs/benchmarks.md" if chosen.size == "full" else out / "benchmarks.md"
    order = {name: place for place, name in enumerate(BENCHMARKS)}
    results = sorted(load(out), key=lambda result: order.get(result["name"], len(order)))
    page.write_text(markdown(results), encoding="utf-8")
    print(f"wrote {page}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def words_of(name: str, chosen: object) -> list[str]:
    """Options of one benchmark."""
    values = {"size": "", "out": "", "clock": "", **vars(chosen)}
    words = [f"--{key}={values[key]}" for key in ("size", "out", "clock")]
    if values["data_root"] and name in NEED_DATA:
        words.append(f"--data-root={values['data_root']}")
    if values["minutes"] and name == "time_to_quality":
        words.append(f"--minutes={values['minutes']}")
    return words


def run(name: str, words: Sequence[str]) -> bool:
    """Run one; whether it succeeded."""
    print(f"\n=== {name} {' '.join(words)}", flush=True)
    start = time.monotonic()
    script = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run([sys.executable, str(script), *words], check=False)
    verdict = "done" if done.returncode == 0 else f"FAILED with status {done.returncode}"
    print(f"=== {name}: {verdict} after {time.monotonic() - start:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
