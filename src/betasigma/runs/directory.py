"""Run directories: their names, how to find them, and what ran in them. No heavy imports."""

from __future__ import annotations

import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from yaml import YAMLError

from betasigma.cpus import usable_cpus
from betasigma.runs.files import read_json, remove_partial
from betasigma.runs.header import CHECKPOINTS, LAST, PREVIOUS, is_readable
from betasigma.runs.record import METRICS
from betasigma.runs.start import CLONE, subcommand, typed_words

OUTPUTS = Path("outputs")

CONFIG = "config.yaml"
"""Resolved config of a training run."""

SUMMARY = "summary.json"
"""Last table of a training run, which marks its end."""

ENVIRONMENT = "environment.json"
"""Command, versions, machine and git state of each start of a run."""

LOG = "log.txt"
"""What a run has said."""

SWEEP = "sweep"
"""Key of ``ENVIRONMENT`` with the id of the sweep that the run is a job of."""

LADDER = "ladder.json"
"""How each ``auto`` was resolved."""

DATA = "data.json"
"""What the data were found to be: splits, counts, classes, what was left out."""

SAMPLES = "samples"
"""Folder of a training run with its sample grids."""

WANDB = "wandb"
"""Folder of a run with the files of Weights & Biases."""

WANDB_ID = "wandb_id.txt"
"""Weights & Biases' id of the run."""

INITIAL = "init.json"
"""What a run's first weights were taken from, and which."""

OVERRIDES = ".hydra/overrides.yaml"
"""Overrides of a run, as Hydra was given them."""

COMMIT = "commit.json"
"""Git state of the code, in a copy of it that a sweep's jobs run."""

DRAWN = "samples.json"
"""Description of samples, beside them."""

PACKAGES = (
    *("betasigma", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf"),
    *("wandb", "torchmetrics", "torch-fidelity", "timm", "numpy"),
)


def cache_folder() -> Path:
    """Where what was computed or fetched once is kept: ``$BETASIGMA_CACHE`` or
    ``~/.cache/betasigma``.
    """
    return Path(os.environ.get("BETASIGMA_CACHE") or "~/.cache/betasigma").expanduser()


KERNELS = "TORCHINDUCTOR_CACHE_DIR"
"""PyTorch's environment variable of the folder of compiled kernels."""


OWN_KERNELS = "BETASIGMA_KERNELS"
"""The same as a command of ours has set it, which a job on another machine does not take over."""


def kernel_folder() -> Path:
    """Where compiled kernels are kept, for the next process that computes the same: where the
    user says so, else in the cache.
    """
    given = os.environ.get(KERNELS)
    # which PyTorch itself sets, when torchvision is imported for example
    default = str(Path(tempfile.gettempdir(), "torchinductor_"))
    users_own = given and given != os.environ.get(OWN_KERNELS) and not given.startswith(default)
    return Path(given) if given and users_own else cache_folder() / "compiled"


def keep_kernels() -> None:
    """Have PyTorch keep compiled kernels there. It looks up the folder whenever it compiles."""
    folder = str(kernel_folder())
    if folder != os.environ.get(KERNELS):
        os.environ[KERNELS] = os.environ[OWN_KERNELS] = folder


def new_directory(name: str) -> str:
    """Directory for a new run. Two runs that start at the same time get different ones."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    return str(OUTPUTS / f"{stamp}_{name}_{secrets.token_hex(3)}")


def short(path: Path) -> Path:
    """``path`` relative to the working directory if it is inside, else unchanged."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def wandb_id(run: Path) -> str | None:
    """Weights & Biases' id of a run; ``None`` where it has none."""
    file = run / WANDB_ID
    text = file.read_text("utf-8", "replace").strip() if file.is_file() else ""
    return text if re.fullmatch(r"[\w-]{1,128}", text) else None


def holds_run(directory: Path) -> bool:
    """Whether a run of ours was begun in a directory."""
    return (directory / CONFIG).is_file() and (directory / ENVIRONMENT).is_file()


def clear(run: Path, overwrite: bool) -> None:
    """Remove what an earlier start of a run has left in its directory, and nothing else. With
    ``overwrite`` the run on the dashboard is another one too.
    """
    if not holds_run(run):
        return
    left = [*(run / CHECKPOINTS).glob("*.ckpt"), *(run / SAMPLES).glob("step_*.png")]
    names = [METRICS, SUMMARY, LADDER, DATA, INITIAL, ENVIRONMENT]
    if overwrite:
        names.append(WANDB_ID)
    for path in (*left, *(run / name for name in names)):
        path.unlink(missing_ok=True)


def newest_runs(matches: Any) -> Iterator[Path]:
    """Run directories that have a checkpoint and a config with ``matches(config)``, the newest
    first.
    """
    from omegaconf import DictConfig, OmegaConf

    written: dict[Path, float] = {}
    for name in (PREVIOUS, LAST):
        for checkpoint in OUTPUTS.glob(f"**/{CHECKPOINTS}/{name}"):
            written[checkpoint.parents[1]] = checkpoint.stat().st_mtime
    for run in sorted(written, key=lambda run: written[run], reverse=True):
        try:
            config = OmegaConf.load(run / CONFIG)
        except (OSError, ValueError, YAMLError):
            continue  # not a run of ours, or one that was cut off at its start
        if isinstance(config, DictConfig) and matches(config):
            yield run


def mend(run: Path) -> None:
    """Remove what a killed process has left half written. Remove a last checkpoint that cannot be
    read if the one before it can: the next checkpoint would replace the whole one by it.
    """
    folder = run / CHECKPOINTS
    for each in (run, folder, run / SAMPLES):
        remove_partial(each)
    last = folder / LAST
    if last.is_file() and is_readable(folder / PREVIOUS) and not is_readable(last):
        last.unlink()


def describe_environment(overrides: list[str]) -> dict[str, Any]:
    """Command line, versions, machine and git state, for ``ENVIRONMENT``."""
    app = subcommand()
    return {
        "command": [*(["betasigma", *app] if app else [Path(sys.argv[0]).name]), *typed_words()],
        "overrides": overrides,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "usable_cpus": usable_cpus(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        },
        "code": str(CLONE),
        "git": read_json(CLONE / COMMIT) or git_state(Path(__file__).parent),
    }


def git_state(folder: Path) -> dict[str, str] | None:
    """Commit, branch and changed files; ``None`` outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "changes": git("status", "--porcelain"),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def version(package: str) -> str | None:
    """Version of a package; ``None`` if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
