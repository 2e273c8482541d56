"""Command lines at random: each trains and samples, or ends in one sentence before there is a run
directory; and every key of what is built changes something, or is refused where it does not.

BETASIGMA_FUZZ=20000 takes as many cases, others than those of the derandomised run.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from pathlib import Path
from zlib import crc32

import overrides
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from launching import launch
from overrides import Case, bases, cases, checked, compose
from signature import same, signature

from betasigma.commands import checks
from betasigma.errors import UserError

ASKED = int(os.environ.get("BETASIGMA_FUZZ", "0"))
CASES = ASKED or 500
OF_WHICH_ONE = 12
"""Of so many command lines that are accepted one is trained, by its checksum."""

pytestmark = pytest.mark.slow


def assert_one_sentence(text: str, case: Case) -> None:
    assert text.strip(), case
    assert "\n" not in text, f"{case}: {text}"
    assert len(text) < 800, f"{case}: {text}"
    assert "Traceback" not in text, f"{case}: {text}"


def test_a_command_line_trains_or_ends_in_one_sentence(here: Path) -> None:
    """It is composed and checked as a command does it. Of those that are accepted some are taken to
    the end: they train, sample and leave a whole run directory.
    """
    found: Counter[str] = Counter()
    known = bases(CASES // 40, seed=ASKED)

    @settings(
        max_examples=CASES,
        phases=[Phase.generate],  # a case is short as it is, and a shorter one takes minutes
        derandomize=not ASKED,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(known))
    def one(case: Case) -> None:
        outcome = checked(case)
        if outcome.bug is not None:
            raise AssertionError(f"{' '.join(case.words)}") from outcome.bug
        found["refused" if outcome.config is None else "accepted"] += 1
        if outcome.config is None:
            assert_one_sentence(outcome.refused, case)
        elif crc32(" ".join(case.words).encode()) % OF_WHICH_ONE == 0:
            found[trained(case, here / "run")] += 1

    one()
    print(f"\n{dict(found)}, of {len(known)} choices of groups")
    assert min(found["accepted"], found["refused"]) > CASES / 10
    assert found["trained"] > CASES / 100
    assert not list(here.iterdir()), "a check made a file"


def trained(case: Case, place: Path) -> str:
    """How a command ends that the checks accept: trained, or refused with no run directory, by what
    is only known when it starts.
    """
    shutil.rmtree(place, ignore_errors=True)  # of a case that has failed, and is tried again
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = launch("train", *case.words, f"hydra.run.dir={place}")
    assert "Traceback" not in outcome.err, f"{' '.join(case.words)}\n{outcome.err}"
    if outcome.status:
        assert_one_sentence(outcome.err.removeprefix("error: ").strip(), case)
        assert not place.exists(), f"{' '.join(case.words)}\n{outcome.err}"
        return "refused at its start"
    assert (place / "checkpoints" / "last.ckpt").is_file(), case
    assert list((place / "samples").glob("*.png")), case
    shutil.rmtree(place)
    return "trained"


# ---------------------------------------------------------------- keys without effect

PAIRS = ("network.channels=8", "network.blocks=1", "network.multipliers=[1,1]")
POINTS = ("data=mixture", "network.width=8", "network.depth=1")
COMPOSITIONS = [
    (*PAIRS, "sampler=heun", "sampler.steps=3"),
    (*PAIRS, "model=ncsn", "sampler.inner_steps=2", "sampler.steps=3"),
    (*POINTS, "sampler=dpm_solver", "sampler.steps=4"),
    (
        *("network=ddpmpp", *PAIRS, "network.attention=[]", "objective=edm"),
        *("preconditioning.prediction=edm", "sampler=predictor_corrector", "sampler.steps=3"),
    ),
    (
        *("model=ncsn_v2", "network=refinenet_v2", "network.channels=8"),
        *("network.multipliers=[1,1,1]", "sampler=ddim", "sampler.steps=3"),
    ),
    (
        *(*PAIRS, "schedule=cosine", "objective=hybrid", "sampler=ancestral", "sampler.steps=3"),
        "sampler.variance=learned",
    ),
    (*PAIRS, "model=ncsn", "sigma.levels=1", "sigma.max=0.5", "sampler=ddim"),
    (*POINTS, "objective=sliced", "sampler=adaptive_ode"),
]

NOT_NUMBERS = {
    "network.checkpoint": "memory",
    "model.name": "a name",
    "model.defaults": "read by interpolation alone",
    "data.name": "another data set",
}
"""Keys with another effect than on a number."""


@pytest.mark.skipif(not ASKED, reason="takes a quarter of an hour: BETASIGMA_FUZZ=500 asks for it")
@pytest.mark.parametrize("composition", COMPOSITIONS, ids=lambda words: "-".join(words[-3:]))
def test_a_key_has_an_effect_or_is_refused(here: Path, composition: tuple[str, ...]) -> None:
    """A key that is told to have no effect has none, and one that has none is told."""
    groups = (*overrides.SMALL, *overrides.OF_TRAINING, *composition)
    config = compose(Case(groups, ()))
    known = signature(checks.check_run(compose(Case(groups, ()))).content)
    wrong, tried = [], 0
    for key, values in overrides.of_components(config):
        if key in NOT_NUMBERS:
            continue
        now = str(overrides.OmegaConf.select(config, key))
        changed, unused, ever_unused = None, False, False
        for value in dict.fromkeys(values):
            if equal(value, now):
                continue
            try:
                run = compose(Case(groups, (f"{key}={value}",)))
                unread = checks.unread(run)
                content, options, facts = checks.check_run(run)
            except (UserError, *overrides.REFUSALS):
                continue
            told = unread | checks.unused_in_training(content, options, facts)
            unused = checks.unused_reason(key, told) is not None
            ever_unused |= unused
            changed = not same(known, signature(content))
            if changed:
                break
        tried += changed is not None
        if changed is not None and (unused if changed else not ever_unused):
            wrong.append(f"{key} {'has' if changed else 'has no'} effect")
    assert wrong == []
    assert tried > 15


def equal(value: str, other: str) -> bool:
    """Whether two values are the same, as they are typed and as Python shows them."""
    if value.replace("null", "None").lower() == other.lower():
        return True
    try:
        return float(value) == float(other)
    except ValueError:
        return False
