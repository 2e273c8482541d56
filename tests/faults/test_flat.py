"""Memory and descriptors stay flat over long trainings and evaluations.

Their slopes are printed. BETASIGMA_LONG=1 takes 10,000 steps and 50,000 samples, which is minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import TINY, launch
from scipy.stats import theilslopes

from betasigma.data.datamodule import ImageDataModule
from betasigma.training.progress import Metrics

LONG = os.environ.get("BETASIGMA_LONG") == "1"
STEPS, SAMPLES = (10_000, 50_000) if LONG else (1_000, 4_000)

METRICS = ("fd", "kid", "precision", "recall", "neighbours") if LONG else ("fd",)
"""All but the first keep samples up to a limit that 4,000 do not reach."""

GROWTH = 2**24
"""Bytes by which the whole of a long run, or its like, may grow: the noise of an allocator."""

DESCRIPTORS = Path("/proc/self/fd")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="no /proc tells of memory here"),
]


class Usage:
    """What this process holds, as often as it is looked at."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.descriptors: list[int] = []

    def look(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.descriptors.append(len(list(DESCRIPTORS.iterdir())))

    def check(self, what: str, count: int, long: int) -> None:
        """The slopes over the second half, when everything has been allocated once: medians over
        pairs of looks (Theil & Sen), which something allocated once more hardly moves.
        """
        half = len(self.bytes) // 2
        places = np.linspace(0, count, len(self.bytes))[half:]
        slopes = [
            theilslopes(values[half:], places).slope for values in (self.bytes, self.descriptors)
        ]
        print(f"{what}: {slopes[0]:.1f} bytes and {slopes[1]:.2g} descriptors each, of {count}")
        assert slopes[0] * long < GROWTH
        assert max(self.descriptors[half:]) <= self.descriptors[half]


@pytest.fixture
def usage() -> Usage:
    return Usage()


def after(patch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], object]) -> None:
    """Do something after every call of a method."""
    original = getattr(owner, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        act()
        return found

    patch.setattr(owner, name, method)


def test_training(here: Path, monkeypatch: pytest.MonkeyPatch, usage: Usage) -> None:
    """With rows of the log, validations, samples, evaluations and checkpoints on the way."""
    after(monkeypatch, Metrics, "on_step", usage.look)
    kept = [word for word in TINY if not word.startswith(("steps", "evaluation", "training.log"))]
    own = ("training.validate_every=50", "training.sample_every=100", "training.log_every=10")
    measured = ("evaluation.every=100", "evaluation.n=0", "evaluation.n_during=8")
    outcome = launch(
        "train",
        *(*kept, f"steps={STEPS}", *own, *measured, "training.checkpoint_every=50"),
        *("evaluation.metrics=[fd]", "evaluation.extractor=identity", "training.warmup=0"),
    )
    assert outcome.status == 0, outcome.err
    assert len(usage.bytes) >= STEPS
    usage.check("a step", STEPS, 10_000)


def test_evaluation(here: Path, monkeypatch: pytest.MonkeyPatch, usage: Usage) -> None:
    run = launch("train", *TINY, "steps=1").run
    after(monkeypatch, ImageDataModule, "to_uint8", usage.look)
    outcome = launch(
        "evaluate",
        *(f"run={run}", f"n={SAMPLES}", "error_curve=0", "evaluation.extractor=identity"),
        *(f"evaluation.metrics=[{','.join(METRICS)}]", "evaluation.batch_size=40"),
    )
    assert outcome.status == 0, outcome.err
    assert len(usage.bytes) >= SAMPLES // 40
    usage.check("a sample", SAMPLES, 50_000)
