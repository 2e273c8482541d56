"""Train a diffusion model: python train.py model=ncsn sigma.levels=10 (--help lists the keys)."""

from omegaconf import DictConfig

from betasigma.launch.app import app


@app("train", "conf")
def main(config: DictConfig) -> None:
    from betasigma.commands.train import train

    train(config)


if __name__ == "__main__":
    main()
