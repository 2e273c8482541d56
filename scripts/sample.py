"""Draw samples from a trained model: python scripts/sample.py run=outputs/… n=64 sampler=ddim"""

from omegaconf import DictConfig

from betasigma.launch.app import app


@app("sample", "../conf")
def main(config: DictConfig) -> None:
    from betasigma.commands.sample import sample

    sample(config)


if __name__ == "__main__":
    main()
