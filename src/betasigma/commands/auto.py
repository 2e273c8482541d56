"""Replace ``auto`` in a noise ladder by numbers, before anything is built from the config.

``schedule=geometric_auto`` leaves σ_max, the number of levels and annealed Langevin's step to
NCSNv2's rules (:mod:`betasigma.ladder`). They are computed once, when the data is open. What is
built, saved and loaded contains only numbers. ``sigma.found`` lists the computed keys, so that
``resume=auto`` recognises a run by what was asked.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from betasigma import ladder
from betasigma.commands.assemble import Config, make_sampler
from betasigma.commands.load import Loaded
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.distance import Distance, measure
from betasigma.display import Display
from betasigma.errors import UserError
from betasigma.options import AUTO
from betasigma.options.apps import ModelConfig
from betasigma.samplers import Sampler


class Resolved(NamedTuple):
    """A config without ``auto``, and how each number was found."""

    config: Config
    reasons: list[str]
    record: dict[str, Any]
    """What ``ladder.json`` keeps; empty if nothing was ``auto``."""


def resolve_auto(config: Config, data: ImageDataModule, display: Display) -> Resolved:
    """Compute what is ``auto`` in the config of a training run."""
    known = {key: value for key, value in config.items() if key in ModelConfig.model_fields}
    if not ModelConfig.parse(known).unresolved:
        return Resolved(config, [], {})
    sigma = dict(config["sigma"])
    schedule, reasons = dict(config["schedule"]), []
    dim = math.prod(data.sample_shape)
    record: dict[str, Any] = {"data": data.data_name, "dimension": dim}
    if schedule["max"] == AUTO:
        distance = _measure(config, data, display)
        schedule["max"] = distance.value
        reasons.append(_of_distance(distance, data))
        record |= {"largest_distance": distance.value, "compared": distance.compared}
        record |= {"content": data.content_key("train"), "value_range": list(data.value_range)}
        if schedule["min"] >= distance.value:
            raise UserError(
                f"sigma.min={schedule['min']:g} must be below the largest distance between two "
                f"examples of data={data.data_name}, {distance.value:.4g} (sigma.max=auto)"
            )
    if schedule["levels"] == AUTO:
        ratio = ladder.level_ratio(dim, sigma["overlap"])
        schedule["levels"] = ladder.count_levels(ratio, schedule["max"], schedule["min"])
        reasons.append(
            f"sigma.levels = {schedule['levels']}: in {dim} dimensions levels at the ratio "
            f"{ratio:.4f} overlap by C = {sigma['overlap']} (Technique 2, sigma.overlap), from "
            f"{schedule['max']:.4g} to sigma.min = {schedule['min']:g}"
        )
        record |= {"overlap": sigma["overlap"], "ratio": ratio}
    sampler, more = resolve_step(config["sampler"], schedule)
    found = [key for key in ("levels", "max") if sigma[key] == AUTO]
    if found:
        sigma |= {key: schedule[key] for key in found} | {"found": found}
    record |= {key: schedule[key] for key in ("levels", "max", "min")}
    record |= {key: sampler[key] for key in ("step", "inner_steps") if key in sampler}
    resolved = {**config, "sigma": sigma, "schedule": schedule, "sampler": sampler}
    reasons += more
    return Resolved(resolved, reasons, record)


def resolve_step(sampler: Config, schedule: Config) -> tuple[Config, list[str]]:
    """Compute the Langevin step of a sampler node, and say why it has this value; without ``step:
    auto`` return it unchanged.
    """
    if sampler.get("step") != AUTO:
        return sampler, []
    levels = sampler["steps"] or schedule["levels"]
    if levels < 2:
        raise UserError(
            "sampler.step=auto follows from the ratio of neighbouring noise levels, and there is "
            "one level only: give sampler.step=0.2, say"
        )
    ratio = ladder.own_ratio(levels, schedule["max"], schedule["min"])
    inner_steps = sampler["inner_steps"]
    step = ladder.langevin_step(ratio, inner_steps)
    left = ladder.variance_ratio(step, ratio, inner_steps)
    reason = (
        f"sampler.step = {step:.4g} (times sigma^2): from the level above, at the ratio "
        f"{ratio:.4f}, sampler.inner_steps = {inner_steps} such steps leave {left:.4f} times the "
        f"variance (Technique 4)"
    )
    return {**sampler, "step": step}, [reason]


def choose_sampler(node: Config | None, loaded: Loaded, display: Display) -> Sampler:
    """Make the sampler that the config names; without one, take the sampler of the run."""
    if node is None:
        return loaded.sampler
    resolved, reasons = resolve_step(node, loaded.config["schedule"])
    for reason in reasons:
        display.line(reason)
    return make_sampler(resolved)


def _measure(config: Config, data: ImageDataModule, display: Display) -> Distance:
    cache = config["evaluation"]["cache"]
    with display.share("comparing examples") as progress:
        distance = measure(data, config["sigma"]["examples"], cache, progress)
    if distance.value == 0:
        raise UserError(
            f"sigma.max=auto finds no two different examples in data={data.data_name}: give "
            f"sigma.max=…"
        )
    return distance


def _of_distance(distance: Distance, data: ImageDataModule) -> str:
    low, high = data.value_range
    exact = distance.compared == distance.examples
    which = f"{'' if exact else f'{distance.compared} of '}{distance.examples}"
    return (
        f"sigma.max = {distance.value:.4g}: largest distance between two of {which} training "
        f"examples of {data.data_name} with values in [{low:g}, {high:g}] (Technique 1)"
    )
