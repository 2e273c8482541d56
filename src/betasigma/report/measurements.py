"""What a run has measured, out of its record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from betasigma.options.training import AT_LOG_SNR, DENOISING_ERROR, SPEED
from betasigma.report.runs import Run

DISTANCE = re.compile(r"((?:fid|fd_\w+?))(?:_(test|floor))?")
"""A Fréchet distance to the training split, to the test split, or of test images to the training
split.
"""

BITS = re.compile(r"(density_|)bits_per_dim/(\w+)/([a-z]+)(_test)?")
"""A likelihood in bits per dimension: of points or images, which, its total or one of its terms, of
the training or the test split.
"""

EVALUATED = re.compile(r"^eval(_of_[^/]*)?/")
"""What the names of evaluations begin with, those of some classes alone (``eval_of_3/``) too."""

Values = dict[str, float]


def of_training(run: Run) -> Values:
    """Values of a training run at its last step that has any: Fréchet distances with n and NFE of
    their samples, bits per dimension, denoising error; and its seconds of training without
    validation and sampling.
    """
    step = str(last_step(run))
    found = results([row for row in run.last if row["step"] == step], "val")
    seconds = _training_seconds(run)
    return {**found, "training s": seconds} if seconds else found


def last_step(run: Run) -> int:
    """Step of the last validation, or of whatever was recorded last."""
    last = [(series.metric, series.steps[-1]) for series in run.series]
    validated = [step for metric, step in last if metric.startswith("val/")]
    return max(validated or [step for _, step in last], default=0)


def of_evaluation(run: Run) -> Values:
    """What one evaluation has measured, with n and NFE of its samples, or of its likelihood where
    none were drawn.
    """
    rows = run.last
    bits = [row for row in rows if BITS.fullmatch(_name(row))]
    drawn = _of_samples(rows)
    found = results(rows, "eval")
    found |= {
        _name(row): float(row["value"]) for row in drawn if not DISTANCE.fullmatch(_name(row))
    }
    for row in (drawn or bits)[:1]:
        found |= _sizes(row)
    return found


def sampler_of(run: Run) -> tuple[str, Settings]:
    """Name and settings of the sampler of an evaluation; nothing where no samples were drawn."""
    for row in _of_samples(run.last):
        return row["sampler"], frozenset(settings_in(row).items())
    return "", frozenset()


def settings_in(row: Mapping[str, str]) -> dict[str, str]:
    """Settings of a sampler or a likelihood in a row of a record. Those of earlier versions have
    blanks in their values.
    """
    words = re.split(r"\s+(?=\w+=)", row["settings"].strip())
    return dict(word.split("=", 1) for word in words if "=" in word)


def results(rows: Sequence[Mapping[str, str]], prefix: str) -> Values:
    """Last distances, likelihoods and denoising error by column, with n and NFE of the samples."""
    found: Values = {}
    for column, row in _by_column(rows, prefix):
        found[column] = float(row["value"])
        if DISTANCE.fullmatch(column.removesuffix(" train")):
            found |= _sizes(row)
    return found


def measured_by(rows: Sequence[Mapping[str, str]], prefix: str) -> dict[str, frozenset[str]]:
    """n and NFE by which results were last measured, by column: ``n=500``."""
    return {
        column: frozenset(f"{key}={value}" for key, value in _sizes(row).items())
        for column, row in _by_column(rows, prefix)
    }


def _by_column(
    rows: Sequence[Mapping[str, str]], prefix: str
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Rows of distances, likelihoods and denoising errors, with what their column is called."""
    for row in rows:
        before, _, metric = EVALUATED.sub("eval/", row["metric"]).partition("/")
        if before != prefix:
            continue
        if distance := DISTANCE.fullmatch(metric):
            name, against = distance.groups()
            yield f"{name} {against or 'train'}", row
        elif bits := BITS.fullmatch(metric):
            density, estimator, term, test = bits.groups()
            yield f"{density}{estimator} {'' if test else 'train '}{term}", row
        elif metric == DENOISING_ERROR:
            yield metric, row


class MeasuredCurve(NamedTuple):
    """A denoising error by log-SNR, and the number of examples that it is of; ``""`` if it was not
    recorded.
    """

    errors: dict[float, float]
    n: str


def error_curve(run: Run) -> MeasuredCurve:
    """Denoising error by log-SNR as it was last measured: by an evaluation or, where it has been
    trained further since, in training.
    """
    recorded = run.last
    rows = max(
        (
            [row for row in recorded if row["metric"].startswith(prefix + AT_LOG_SNR)]
            for prefix in ("eval", "val")
        ),
        key=lambda rows: max((int(row["step"]) for row in rows), default=-1),
    )
    errors = {float(row["metric"].partition(AT_LOG_SNR)[2]): float(row["value"]) for row in rows}
    return MeasuredCurve(errors, rows[-1]["n"] if rows else "")


def examples_in_words(numbers: Iterable[str]) -> str:
    """Numbers of examples in words: ``n=360``, ``n=20 or 360``; ``""`` where none is known."""
    known = sorted({int(float(n)) for n in numbers if n})
    return f"n={' or '.join(map(str, known))}" if known else ""


def last_values(runs: Sequence[Run]) -> list[list[str]]:
    """A line for each metric: its name, then the last value of each run. Values share a line if
    they were measured alike: with the same n, NFE and sampler, and whatever else is recorded.
    """
    tables = [_last(run) for run in runs]
    found = list(dict.fromkeys(measured for table in tables for measured in table))
    names = dict(zip(found, told_apart(found), strict=True))
    return [
        [names[measured], *(table.get(measured, "") for table in tables)]
        for measured in sorted(found, key=lambda measured: names[measured])
    ]


Settings = frozenset[tuple[str, str]]
"""Keys with their values."""

Measured = tuple[str, Settings]
"""What a value is of, and how it was measured."""


def _last(run: Run) -> dict[Measured, str]:
    values = {}
    for row in run.last:
        if row["metric"].startswith((f"train{AT_LOG_SNR}", "train/loss_by_noise", "sample/")):
            continue
        context = [f"{key}={row[key]}" for key in ("n", "nfe", "sampler") if row[key]]
        own = {key: row[key] for key in ("guidance", "n_reference") if row[key]}
        own |= settings_in(row)
        measured = " ".join([row["metric"], *context]), frozenset(own.items())
        values[measured] = f"{float(row['value']):.4g}"
    return values


def told_apart(found: Sequence[tuple[str, Settings]]) -> list[str]:
    """Each name with those of its settings that not all of this name have in common."""
    common: dict[str, Settings] = {}
    for name, settings in found:
        common[name] = common.get(name, settings) & settings
    return [
        " ".join([name, *(f"{k}={v}" for k, v in sorted(settings - common[name]))])
        for name, settings in found
    ]


def _of_samples(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows of an evaluation that were measured on samples."""
    return [row for row in rows if row["nfe"] and row["sampler"] and not BITS.fullmatch(_name(row))]


def _sizes(row: Mapping[str, str]) -> Values:
    return {key: int(float(row[key.lower()])) for key in ("n", "NFE") if row[key.lower()]}


def _name(row: Mapping[str, str]) -> str:
    return EVALUATED.sub("", row["metric"])


def _training_seconds(run: Run) -> float:
    """From the logged speeds, each of which holds for the steps since the one before."""
    speeds, batch = run.curve(SPEED), run.config["batch_size"]
    return sum(
        (step - before) * batch / speed
        for before, (step, speed) in zip([0.0, *speeds], speeds.items(), strict=False)
    )
