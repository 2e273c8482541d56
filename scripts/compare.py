"""Compare runs from their directories: python scripts/compare.py runs=[outputs/a,outputs/b]"""

from omegaconf import DictConfig

from betasigma.launch.app import app


@app("compare", "../conf")
def main(config: DictConfig) -> None:
    from betasigma.commands.compare import compare

    compare(config)


if __name__ == "__main__":
    main()
