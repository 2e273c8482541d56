"""Draw Langevin dynamics: python examples/langevin/figures.py runs=[outputs/a,outputs/b]"""

from pathlib import Path

from omegaconf import DictConfig

from betasigma.launch.app import app
from betasigma.runs.start import Start
from langevin_figures.options import CHECKS


@app("figures", Path(__file__).parent / "conf", checks=CHECKS)
def main(config: DictConfig, start: Start) -> None:
    from langevin_figures.study import draw_figures

    draw_figures(config, start)


if __name__ == "__main__":
    main()
