"""docs/extending.md shows files of examples/ as they are, and its commands run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from launching import ROOT, launch

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"\*\*`(examples/[^`]+)`\*\*\n\n```\w+\n(.*?)\n```", PAGE, re.DOTALL)
RUN = re.findall(r"```python\n(from betasigma.*?)\n```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^python train\.py (.*)$", PAGE, re.MULTILINE)
COSTS = re.findall(r"^\| [^|]+\| [^|]*\| 0 \| 0 \| ([^|]+) \| (\d+) \|$", PAGE, re.MULTILINE)
SMALL = (
    *("steps=2", "sampler.steps=2", "batch_size=8", "hardware.precision=32", "data.val_size=8"),
    *("training.num_samples=2", "training.log_every=2", "training.warmup=0"),
    *("evaluation.n=4", "evaluation.metrics=[fd]", "evaluation.extractor=identity"),
)


@pytest.mark.parametrize(("path", "text"), SHOWN, ids=[path for path, _ in SHOWN])
def test_a_block_is_the_file_or_parts_of_it(path: str, text: str) -> None:
    file = (ROOT / path).read_text(encoding="utf-8")
    assert all(part in file for part in text.split("\n...\n"))


def test_every_kind_is_shown() -> None:
    kinds = {path.name for path in (ROOT / "examples/plugins/mylab").glob("*.py")} - {"__init__.py"}
    assert kinds <= {Path(path).name for path, _ in SHOWN}
    assert len(COMMANDS) >= 12
    assert RUN


def command(typed: str) -> object:
    """A plugin alone is left to the slow tests: the run of everything has it too."""
    alone = "plugins=[mylab]" in typed and "experiment=everything" not in typed
    return pytest.param(typed, marks=[pytest.mark.slow] if alone else [])


@pytest.mark.parametrize("typed", map(command, COMMANDS))
def test_a_command_runs(here: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    for folder in ("examples/plugins", "examples"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    words = shlex.split(typed)
    more = [word for word in SMALL if not typed.count(f" {word.partition('=')[0]}=")]
    everything = "experiment=everything" in words
    if everything or "evaluation=own" in words:
        more = [word for word in more if not word.startswith(("evaluation.m", "evaluation.e"))]
    if everything or "likelihood=averaged_flow" in words:
        more += ["likelihood.n=2", "likelihood.tolerance=0.01"]
    if not (everything or "logger=json_lines" in words):
        more.append("logger=none")
    outcome = launch("train", *words, *more)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("code", RUN)
def test_a_check_passes(code: str) -> None:
    exec(compile(code, "docs/extending.md", "exec"), {})


def test_the_costs_are_measured() -> None:
    assert len(COSTS) == 13
    for files, lines in COSTS:
        paths = [
            ROOT / "examples" / name.removeprefix("examples/") for name in files.split("`")[1::2]
        ]
        if paths[0].is_dir():
            paths = [*paths[0].rglob("*.py"), *paths[0].rglob("*.yaml")]
            assert f"({len(paths)} files)" in files
        assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths) == int(
            lines
        )
