"""Runs commands that must be refused, one after the other in this one process, and reports.

    python refusals.py < [[app, override, …], …] as JSON > [[status, stdout, stderr], …] as JSON

It is a process of its own because nothing heavy may be imported by all of them together; a process
for each would cost a second for each. The last element of the report lists the heavy modules.
"""

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "numpy", "pytorch_lightning", "wandb", "scipy", "matplotlib")


def command(app):
    """The ``main`` of train.py or of scripts/<app>.py."""
    path = ROOT / "train.py" if app == "train" else ROOT / "scripts" / f"{app}.py"
    spec = importlib.util.spec_from_file_location(app, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[app] = module
    spec.loader.exec_module(module)
    return module.main


def outcome(app, *words):
    """Exit status, stdout and stderr of a command."""
    sys.argv = [f"{app}.py", *words]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command(app)()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:  # a user would see a traceback
            import traceback

            traceback.print_exception(error)
            status = 1
    return status, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    report = [outcome(*words) for words in json.load(sys.stdin)]
    print(json.dumps([*report, [name for name in HEAVY if name in sys.modules]]))
