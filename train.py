"""Train a diffusion model: python train.py model=ncsn sigma.levels=10 (--help lists the keys)."""

from betasigma.launch.scripts import train as main

if __name__ == "__main__":
    main()
