"""A signal between processes is never lost, whenever it arrives."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from betasigma.display import Display
from betasigma.errors import Stopped
from betasigma.training.interrupts import Interrupts
from betasigma.training.stop_signals import STOPS


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOPS)}
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("group")
def test_a_signal_during_the_exchange_stops_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes spend most of a step's end in the exchange: the slower one is waited for there."""
    interrupts = Interrupts(Display(quiet=True), 100, lambda trainer: None, None, 60.0)
    progress = SimpleNamespace(total=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer: Any = SimpleNamespace(
        world_size=2, global_step=0, accumulate_grad_batches=1, should_stop=False, fit_loop=loop
    )
    module: Any = None
    interrupts.on_train_start(trainer, module)
    exchange = torch.distributed.all_reduce

    def interrupted(*arguments: Any) -> None:
        exchange(*arguments)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "all_reduce", interrupted)
        interrupts.on_step(trainer, module, 1)
    with pytest.raises(Stopped, match="SIGTERM"):
        interrupts.on_step(trainer, module, 2)
