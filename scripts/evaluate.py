"""Measure a trained model: python scripts/evaluate.py run=outputs/… sampler=ddim"""

from omegaconf import DictConfig

from betasigma.launch.app import app


@app("evaluate", "../conf")
def main(config: DictConfig) -> None:
    from betasigma.commands.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
