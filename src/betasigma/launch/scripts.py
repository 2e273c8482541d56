"""The apps: ``betasigma train …``, or ``python train.py …`` in a clone.

What an app does is imported inside its call, so that ``--help`` and ``--cfg job`` answer at once.
"""

from __future__ import annotations

import sys

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


@app("sample")
def sample(config: DictConfig, start: Start) -> None:
    """Draw samples from a trained model: betasigma sample run=outputs/… n=64 sampler=ddim"""
    say_what_loads()
    from betasigma.commands.sample import sample as run

    run(config, start)


@app("edit")
def edit(config: DictConfig, start: Start) -> None:
    """Edit images by a trained model: betasigma edit run=outputs/… edit=inpaint"""
    say_what_loads()
    from betasigma.commands.edit import edit as run

    run(config, start)


@app("evaluate")
def evaluate(config: DictConfig, start: Start) -> None:
    """Measure a trained model: betasigma evaluate run=outputs/… sampler=ddim"""
    say_what_loads()
    from betasigma.commands.evaluate import evaluate as run

    run(config, start)


@app("compare")
def compare(config: DictConfig, start: Start) -> None:
    """Compare runs from their directories: betasigma compare runs=[outputs/a,outputs/b]"""
    from betasigma.commands.compare import compare as run

    run(config, start)


@app("dashboard")
def dashboard(config: DictConfig, start: Start) -> None:
    """Compare runs on a page, now and while they grow: betasigma dashboard runs=outputs"""
    from betasigma.commands.dashboard import dashboard as run

    run(config, start)


@app("sync")
def sync(config: DictConfig, start: Start) -> None:
    """Send runs that were logged offline to Weights & Biases: betasigma sync outputs/SWEEP"""
    from betasigma.commands.sync import sync as run

    run(config, start)


@app("plot")
def plot(config: DictConfig, start: Start) -> None:
    """Draw a figure for a paper: betasigma plot figure=filmstrip runs=[outputs/a,outputs/b]"""
    from betasigma.commands.paper_figures import plot as run

    run(config, start)


@app("import")
def import_model(config: DictConfig, start: Start) -> None:
    """Turn a published model into a run: betasigma import from=model.pt to=outputs/model"""
    from betasigma.commands.import_model import import_model as run

    run(config, start)


@app("export")
def export(config: DictConfig, start: Start) -> None:
    """Write a trained model for other tools: betasigma export run=outputs/… to=onnx"""
    from betasigma.commands.export import export as run

    run(config, start)


@app("jobs")
def jobs(config: DictConfig, start: Start) -> None:
    """Show the jobs of a sweep: betasigma jobs outputs/SWEEP watch=true"""
    from betasigma.commands.show_jobs import show_sweep as run

    run(config)


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


APPS = {
    "train": train,
    "sample": sample,
    "edit": edit,
    "evaluate": evaluate,
    "compare": compare,
    "plot": plot,
    "dashboard": dashboard,
    "sync": sync,
    "import": import_model,
    "export": export,
    "jobs": jobs,
    "prefetch": prefetch,
}
"""What ``betasigma <name>`` runs."""
