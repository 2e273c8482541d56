"""betasigma as its users run it: built from the config tree by the project's own commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import Callback, Trainer
from torch import Tensor
from torch.nn import functional as F

from betasigma.commands.assemble import Config, make_module, make_sampler, open_data
from betasigma.commands.checks import check_run
from betasigma.commands.measure import Meter
from betasigma.commands.memory_format import choose_memory_format
from betasigma.commands.train import make_model, quiet_libraries, run_callbacks
from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import Denoiser
from betasigma.devices import prepare_model
from betasigma.display import Display
from betasigma.modules import DiffusionModule
from betasigma.modules.averaging import averaged_copy, ramped_decay, update_average
from betasigma.networks.compiled import compile_in_place
from betasigma.samplers import Sampler
from betasigma.training.tracking import close_loggers, make_loggers
from betasigma.training.trainer import Affordable, make_trainer
from harness.report import ROOT
from harness.timing import Step, Telling, Timings, now, seconds_of


def composed(overrides: Sequence[str]) -> Config:
    """The config of ``train.py`` with these words, checked as ``train.py`` checks it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return check_run(compose("train", list(overrides))).content


class Parts(NamedTuple):
    """What ``train.py`` makes of a config before it trains."""

    data: ImageDataModule
    denoiser: Denoiser
    module: DiffusionModule
    sampler: Sampler


def parts(config: Config) -> Parts:
    """Data, denoiser, module and sampler, as ``betasigma.commands.train`` makes them."""
    data = open_data(config)
    denoiser = make_model(config, data)
    prepare_model(denoiser, config["hardware"])
    choose_memory_format(denoiser, config["hardware"], True, print)
    module = make_module(config, denoiser)
    assert isinstance(denoiser, Denoiser)
    assert isinstance(module, DiffusionModule)
    return Parts(data, denoiser, module, make_sampler(config["sampler"]))


def fit(config: Config, made: Parts, run: Path, extra: Sequence[Callback] = ()) -> Trainer:
    """Train with the Trainer, callbacks and loggers of ``train.py``; ``extra`` callbacks come last.

    Returns:
        the Trainer, after its last step.
    """
    quiet_libraries()
    run.mkdir(parents=True, exist_ok=True)
    display = Display()
    loggers = make_loggers(config["logger"], {}, run, config)
    guidance = config["training"]["guidance"]
    meter = Meter(config, made.data, made.sampler, loggers, display, guidance)
    schedule, shape = made.denoiser.schedule, made.denoiser.sample_shape
    affordable = Affordable.by(made.sampler, config, schedule, shape)
    callbacks = run_callbacks(affordable, run, meter)
    trainer = make_trainer(config, run, [*callbacks, *extra], loggers)
    try:
        trainer.fit(made.module, made.data)
    finally:
        close_loggers(loggers)
    return trainer


class TakeTurns(Callback):
    """Times the Trainer's whole step, and after each step the others in turn.

    A step lasts from the end of the turn before to the end of the other callbacks: it includes
    fetching the batch, the loop, the callbacks and the loggers.

    Args:
        others: what else takes turns, by name.
        warmup: rounds that do not count.
        name: of the Trainer's step.
    """

    def __init__(self, others: Mapping[str, Step], warmup: int, name: str = "ours") -> None:
        self._others, self._warmup, self._name = others, warmup, name
        self._clock: float | None = None
        self._all = Timings({key: [] for key in (name, *others)})
        self._tell = Telling()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        ended = now()
        if self._clock is not None:
            self._all.seconds[self._name].append(ended - self._clock)
            for name, step in self._others.items():
                self._all.seconds[name].append(seconds_of(step))
                self._tell(self._all)
        self._clock = now()

    @property
    def timings(self) -> Timings:
        """Of the rounds after the warm-up."""
        return Timings({name: s[self._warmup :] for name, s in self._all.seconds.items()})


def trainer_against(
    config: Config, made: Parts, run: Path, others: Mapping[str, Step], rounds: int, warmup: int = 2
) -> Timings:
    """Steps of the Trainer in turns with others. The first step is never timed."""
    config = {**config, "steps": rounds + warmup + 1}
    turns = TakeTurns(others, warmup)
    fit(config, made, run, [turns])
    return turns.timings


def bare_step(config: Config, made: Parts, x: Tensor) -> Step:
    """A plain PyTorch training step of a copy of our network: noise, loss, backward, clip, Adam,
    average; of DDPM's objective. The copy is compiled where ``hardware.compile`` says so.

    Args:
        config: the run's.
        made: its parts.
        x: the batch that is trained on, again and again, on the device that computes.
    """
    denoiser = averaged_copy(made.denoiser).to(x.device).requires_grad_(True).train()
    average, network, precision = averaged_copy(denoiser), denoiser.network, denoiser.precision
    if config["hardware"]["compile"] not in (False, "auto"):
        compile_in_place(network, config["hardware"]["compile"] == "cuda_graphs")
    settings = config["optimizer"]
    optimizer = torch.optim.Adam(
        network.parameters(), settings["lr"], betas=tuple(settings["betas"]), fused=True
    )
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).to(x.device)
    updates = 0

    def step() -> None:
        nonlocal updates
        eps, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),), device=x.device)
        a = alpha_bar[t].view(-1, *[1] * (x.ndim - 1))
        x_t = a.sqrt() * x + (1 - a).sqrt() * eps
        with torch.autocast(x.device.type, precision, enabled=precision is not None):
            predicted = network(x_t, t.float())
        loss = F.mse_loss(predicted.float(), eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config["training"]["clip"])
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, denoiser, ramped_decay(config["ema"]["decay"], updates))
        updates += 1

    return step


def flops_of(step: Callable[[], object]) -> float:
    """Floating-point operations of one call, by PyTorch's counter, which by itself leaves out the
    CPU's fused attention.
    """
    from torch.utils.flop_counter import (
        FlopCounterMode,
        sdpa_backward_flop_count,
        sdpa_flop_count,
    )

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def attention_backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, q, k, v))

    fused = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        step()
    return float(counter.get_total_flops())


def flops_of_built(build: Callable[[], Step]) -> float:
    """:func:`flops_of` the step that ``build`` makes."""
    return flops_of(build())
