"""docs/guidance.md from its first block to its last, in order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, launch

PAGE = (ROOT / "docs" / "guidance.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)
SMALL = (
    *("network.channels=8", "network.blocks=1", "network.multipliers=[1]", "network.attention=[]"),
    *("steps=4", "batch_size=8", "data.val_size=8", "training.num_samples=4", "evaluation=none"),
    *("sampler=ddim", "sampler.steps=2", "hardware.precision=32", "logger=none"),
)
FEW = ("evaluation.metrics=[fd]", "evaluation.n_reference=20")


def test_the_page_has_commands_of_every_kind() -> None:
    commands = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    assert {shlex.split(line)[1] for line in commands} == {
        "train.py",
        *(f"scripts/{app}.py" for app in ("sample", "evaluate", "edit")),
    }
    assert [kind for kind, _ in BLOCKS].count("python") == 2


@pytest.mark.slow
def test_every_block_runs(here: Path) -> None:
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "docs/guidance.md", "exec"), {})
            continue
        for line in block.splitlines():
            _, script, *words = shlex.split(line)
            app = Path(script).stem
            more = {"train": SMALL, "evaluate": FEW}.get(app, ())
            outcome = launch(app, *words, *more)
            assert outcome.status == 0, f"{line}\n{outcome.err}"
            if app == "train":
                assert "0 circle" in outcome.out
    assert [evaluations(weight) for weight in (0, 1, 3)] == [4, 2, 4]
    assert {path.parent.name for path in Path("drawn").rglob("*.png")} == {
        "0_circle",
        "1_square",
        "2_triangle",
    }


def evaluations(weight: int) -> int:
    """What the sweep's samples of a weight cost, each of 2 steps: triangles and circles in turn."""
    (place,) = Path("outputs").glob(f"*_sample_*/*guidance={weight}*")
    with np.load(place / "samples.npz") as arrays:
        assert arrays["arr_1"].tolist() == [2, 0] * 6
    return int(json.loads((place / "samples.json").read_text())["nfe"])
