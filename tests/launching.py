"""Commands run in this process: what a user types, what comes back.

As a script it runs many, one after the other, and reports which heavy modules they imported
together: python launching.py < [[app, override, …], …] > [[status, stdout, stderr], …, modules].
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "PIL",
    "pytorch_lightning",
    "torchmetrics",
    "timm",
    "wandb",
    "rich",
)


TINY = (
    "network.channels=8",
    "network.blocks=1",
    "network.multipliers=[1]",
    "network.attention=[]",
    "hardware.precision=32",
    "batch_size=16",
    "steps=6",
    "data.val_size=20",
    "training.log_every=2",
    "training.num_samples=4",
    "sampler=ddim",
    "sampler.steps=2",
    "evaluation=none",
    "logger=none",
)
"""Overrides that make any run on the digits small."""


class Outcome(NamedTuple):
    """What a command leaves on the terminal."""

    status: int
    out: str
    err: str

    @property
    def run(self) -> Path:
        """The run directory that it names."""
        found = re.search(r"^run directory (.*)$", self.out, re.MULTILINE)
        assert found, self.out + self.err
        return Path(found[1]).absolute()


Launch = Callable[..., Outcome]


class Finished(NamedTuple):
    """A run that has ended."""

    run: Path
    out: str


def command(app: str) -> Callable[[], None]:
    """The ``main`` of train.py, of scripts/<app>.py or, where it is a path, of <app>.py."""
    folder = "" if app == "train" or "/" in app else "scripts"
    path = ROOT / folder / f"{app}.py"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as Python does for a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.main


def launch(app: str, *words: str) -> Outcome:
    """Run ``python <app>.py <words>`` here."""
    sys.argv = [f"{app}.py", *words]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command(app)()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:  # a user sees a traceback
            traceback.print_exception(error)
            status = 1
    return Outcome(status, out.getvalue(), err.getvalue())


def typed(
    *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Outcome:
    """Run ``python train.py <words>`` in a process of its own, in ``cwd``.

    Args:
        words: of the command line.
        cwd: where it is typed; here by default.
        env: the whole environment; this process's by default.
        timeout: seconds until it is given up.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


if __name__ == "__main__":
    report: list[object] = [launch(*words) for words in json.load(sys.stdin)]
    print(json.dumps([*report, [name for name in HEAVY if name in sys.modules]]))
