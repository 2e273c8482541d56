"""What ``scripts/prefetch.py`` does: fetch, compute and compile what runs need, where there is a
network.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from omegaconf import DictConfig

from betasigma.commands.assemble import Config, make_module, make_sampler, make_schedule, open_data
from betasigma.commands.auto import resolve_auto
from betasigma.commands.checks import check_run
from betasigma.commands.config import trains
from betasigma.commands.measure import data_as_typed, make_evaluator, with_measured
from betasigma.commands.train import make_model, quiet_libraries
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.sources import Split
from betasigma.denoiser import Denoiser, guided
from betasigma.devices import devices_of_training, prepare_model, uses_gpu
from betasigma.display import Display
from betasigma.networks.compiled import compile_in_place, is_compiled
from betasigma.options.evaluation import SAMPLES, measures, most_measured
from betasigma.randomness import Stream
from betasigma.runs.directory import kernel_folder, short
from betasigma.samplers import Sampler, labels_in_turn
from betasigma.training.compiling import can_be_compiled, is_left_open
from betasigma.training.trainer import Affordable, make_trainer


def prefetch(config: DictConfig) -> None:
    """Fetch the data set and the weights of the metrics' features, compute the statistics that
    samples are compared with, of the images that a run with this config takes, and compile its
    network.
    """
    content = check_run(config).content
    display, data = Display(), open_data(content)
    sizes = ", ".join(f"{data.size(split)} {split}" for split in ("train", "test"))
    display.line(f"data      {data.data_name}: {sizes} examples")
    _measure_references(content, data, display)
    compile_ahead(content, data, display)


def _measure_references(content: Config, data: ImageDataModule, display: Display) -> None:
    """Compute the statistics of images that samples are compared with."""
    content = resolve_auto(content, data, display).config
    sampler, schedule = make_sampler(content["sampler"]), make_schedule(content["schedule"])
    asked = content["evaluation"]
    affordable = Affordable.by(sampler, content, schedule, data.sample_shape)
    node = with_measured(affordable)["evaluation"]
    if not measures(node):
        why = "none are asked for"
        if measures(asked):
            why = f"none: so short a training ends with none (evaluation.n={SAMPLES} asks for them)"
        display.line(f"metrics   {why}")
        return
    device = torch.device("cuda" if uses_gpu(content["hardware"]) else "cpu")
    n, shape = most_measured(node), data.sample_shape
    evaluator = make_evaluator(node, n, data, data_as_typed(data), shape, device, display)
    display.line(f"features  {evaluator.extractor.name}")
    wanted: set[tuple[Split, int | None]] = {
        ("train", evaluator.n_reference),
        ("test", evaluator.n_reference),
        *(("test", n) for n in (node["n"], node["n_during"] if node["every"] else 0) if n),
    }
    for split, limit in sorted(wanted, key=str):
        evaluator.statistics.get(split, limit)
        display.line(f"{split:9} {short(evaluator.statistics.path(split, limit))}")


def compile_ahead(content: Config, data: ImageDataModule, display: Display) -> None:
    """Compile what a run of this config would compile here, or say why that is not done."""
    hardware = content["hardware"]
    left_open = hardware["compile"] == "auto"
    if not (hardware["compile"] and trains(content)):
        return
    if left_open and hardware["accelerator"] == "cpu":
        return
    if left_open and not (is_left_open(hardware) and can_be_compiled(content)):
        return
    on_gpu = uses_gpu(hardware)
    if not on_gpu and (left_open or hardware["accelerator"] == "gpu"):
        display.line(
            f"kernels   none: there is no GPU here, and they are made for the one that runs them; "
            f"the first job that compiles leaves them in {short(kernel_folder())}"
        )
        return
    quiet_libraries()
    since = time.perf_counter()
    if not _take_steps(content, data, display):
        display.line("kernels   none: the network cannot be compiled here")
        return
    name = torch.cuda.get_device_name() if on_gpu else "the CPU"
    seconds = time.perf_counter() - since
    display.line(f"kernels   for {name}, in {seconds:.0f} s: {short(kernel_folder())}")


def _take_steps(content: Config, data: ImageDataModule, display: Display) -> bool:
    """Take a step of the training, validate a batch and take a step of each kind of sampling, in
    the order of a run. Return whether the network has been compiled.
    """
    hardware = content["hardware"]
    processes = devices_of_training(hardware) * hardware["nodes"]
    alone = {**hardware, "devices": 1, "nodes": 1, "strategy": "auto"}
    content, _, _ = resolve_auto({**content, "hardware": alone}, data, display)
    data.batch_size = content["batch_size"] // processes
    denoiser = make_model(content, data)
    assert isinstance(denoiser, Denoiser), "there is something to train"
    prepare_model(denoiser, alone)
    module = make_module(content, denoiser)
    if not is_compiled(denoiser.network):  # as a run does after its first steps
        once = content["training"]["accumulate"] == 1
        compile_in_place(denoiser.network, cuda_graphs=once and processes == 1)
    short_run = {**content["trainer"], "limit_val_batches": 1}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer({**content, "steps": 1, "trainer": short_run}, Path(folder), [], [])
        trainer.fit(module, data)
    average = module.average.to(trainer.strategy.root_device)
    assert isinstance(average, Denoiser)
    if not is_compiled(average.network):
        compile_in_place(average.network)
    sampler = make_sampler(content["sampler"])
    affordable = Affordable.by(sampler, content, average.schedule, average.sample_shape)
    measured = min(affordable.measured, content["evaluation"]["batch_size"])
    for n in {affordable.between, affordable.shown, measured}:
        if n:
            _take_step(average, sampler, content, n)
    return is_compiled(denoiser.network)


@torch.inference_mode()
def _take_step(average: Denoiser, sampler: Sampler, content: Config, n: int) -> None:
    """The first step of n samples."""
    model = guided(average, content["training"]["guidance"])
    rng = Stream("sample", content["seed"], indices=range(n), device=average.device)
    y = labels_in_turn(average.num_classes, n)
    labels = None if y is None else y.to(average.device)
    next(sampler.states(model, sampler.begin(model, rng), rng, labels))
