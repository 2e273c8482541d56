"""What ``scripts/prefetch.py`` does: fetch and compute what runs need, where there is a network."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from betasigma.commands.assemble import Config, make_data, make_sampler, make_schedule
from betasigma.commands.auto import resolve_auto
from betasigma.commands.checks import check_run
from betasigma.commands.compile_ahead import compile_ahead
from betasigma.commands.measure import evaluations, make_evaluator, named, with_measured
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.sources import Split
from betasigma.devices import uses_gpu
from betasigma.display import Display, plain_warnings
from betasigma.options.evaluation import SAMPLES, measures, most_measured
from betasigma.runs.directory import short


def prefetch(config: DictConfig) -> None:
    """Fetch the data set and the weights of the metrics' features, compute the statistics that
    samples are compared with, of the images that a run with this config takes, and compile its
    network.

    Raises:
        UserError: for bad input, or where something cannot be fetched.
    """
    content = check_run(config).content
    plain_warnings()
    display, data = Display(), make_data(content)
    data.prepare_data()
    data.setup()
    sizes = ", ".join(f"{data.size(split)} {split}" for split in ("train", "test"))
    display.line(f"data      {data.data_name}: {sizes} examples")
    _measure_references(content, data, display)
    compile_ahead(content, data, display)


def _measure_references(content: Config, data: ImageDataModule, display: Display) -> None:
    """Compute the statistics of images that samples are compared with."""
    content = resolve_auto(content, data, display).config
    sampler, schedule = make_sampler(content["sampler"]), make_schedule(content["schedule"])
    asked = content["evaluation"]
    node = with_measured(content, evaluations(sampler, schedule))["evaluation"]
    if not measures(node):
        why = "none are asked for"
        if measures(asked):
            why = f"none: so short a training ends with none (evaluation.n={SAMPLES} asks for them)"
        display.line(f"metrics   {why}")
        return
    device = torch.device("cuda" if uses_gpu(content["hardware"]) else "cpu")
    n, shape = most_measured(node), data.sample_shape
    evaluator = make_evaluator(node, n, data, named(data), shape, device, display)
    display.line(f"features  {evaluator.extractor.name}")
    wanted: set[tuple[Split, int | None]] = {
        ("train", evaluator.n_reference),
        ("test", evaluator.n_reference),
        *(("test", n) for n in (node["n"], node["n_during"] if node["every"] else 0) if n),
    }
    for split, limit in sorted(wanted, key=str):
        evaluator.statistics.get(split, limit)
        display.line(f"{split:9} {short(evaluator.statistics.path(split, limit))}")
