"""Draw the pictures of the theory: python scripts/figures.py runs=[outputs/a,outputs/b]"""

from omegaconf import DictConfig

from betasigma.launch.app import app


@app("figures", "../conf")
def main(config: DictConfig) -> None:
    from betasigma.commands.figures import figures

    figures(config)


if __name__ == "__main__":
    main()
