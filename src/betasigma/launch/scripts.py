"""The apps: ``betasigma train …``, or ``python train.py …`` in a clone.

What an app does is imported inside its call, so that ``--help`` and ``--cfg job`` answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from omegaconf import DictConfig

from betasigma.launch.app import app
from betasigma.runs.start import Start
from betasigma.runs.status import process_rank


def say_what_loads() -> None:
    """Say what the next seconds are for, where PyTorch is still to be loaded."""
    if "torch" not in sys.modules and process_rank() == 0:
        print("loading PyTorch and Lightning", flush=True)


@app("train")
def train(config: DictConfig, start: Start) -> float | None:
    """Train a diffusion model: betasigma train model=ncsn sigma.levels=10"""
    say_what_loads()
    from betasigma.commands.train import train as run

    finished = run(config, start)
    return finished.value(config.objective_metric) if start.searched else None


@app(
    "train",
    always=(
        *("hydra/output=tool", "hydra.job.name=prefetch"),
        "hydra.callbacks.preflight.app=prefetch",
    ),
)
def prefetch(config: DictConfig, start: Start) -> None:
    """Fetch what runs need, where there is a network: betasigma prefetch experiment=ncsn_cifar10"""
    from betasigma.commands.prefetch import prefetch as run

    run(config)


ABOUT = {
    "sample": "Draw samples from a trained model: betasigma sample run=outputs/… n=64 sampler=ddim",
    "edit": "Edit images by a trained model: betasigma edit run=outputs/… edit=inpaint",
    "evaluate": "Measure a trained model: betasigma evaluate run=outputs/… sampler=ddim",
    "compare": "Compare runs from their directories: betasigma compare runs=[outputs/a,outputs/b]",
    "plot": "Draw a figure for a paper: betasigma plot figure=filmstrip runs=[outputs/a,outputs/b]",
    "dashboard": "Compare runs on a page, now and as they grow: betasigma dashboard runs=outputs",
    "sync": "Send runs that were logged offline to Weights & Biases: betasigma sync outputs/SWEEP",
    "import": "Turn a published model into a run: betasigma import from=model.pt to=outputs/model",
    "export": "Write a trained model for other tools: betasigma export run=outputs/… to=onnx",
    "jobs": "Show the jobs of a sweep: betasigma jobs outputs/SWEEP watch=true",
}
"""What the other apps do. Each calls the function of its name in the module of its name, of
:mod:`betasigma.commands`, unless ``CALLED`` names others.
"""

CALLED = {
    "plot": "paper_figures.plot",
    "import": "import_model.import_model",
    "jobs": "show_jobs.show_sweep",
}

SLOW = ("sample", "edit", "evaluate")
"""Apps that load PyTorch, which takes seconds, before they say anything."""


def _calling(name: str) -> Callable[[], None]:
    module, _, function = CALLED.get(name, f"{name}.{name}").partition(".")

    def task(config: DictConfig, start: Start) -> None:
        if name in SLOW:
            say_what_loads()
        getattr(import_module(f"betasigma.commands.{module}"), function)(config, start)

    task.__doc__ = ABOUT[name]
    return app(name)(task)


APPS = {"train": train, **{name: _calling(name) for name in ABOUT}, "prefetch": prefetch}
"""What ``betasigma <name>`` runs."""
