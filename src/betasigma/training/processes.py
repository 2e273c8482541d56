"""The other processes of a run on several devices.

On one machine Lightning starts them: it runs the command line again, in the run directory. That
command line must mean this run and no other. A sweep's would start the whole sweep again, and
``resume=auto`` might find another run. The processes must end with the run, because the next job of
a sweep starts its own. On a cluster SLURM starts and ends them.

A training's processes are its Trainer's (:func:`launched_processes`). Where nothing is trained they
share samples out (:func:`shared_work`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from omegaconf import read_write
from pytorch_lightning import Trainer

from betasigma.cpus import THREADS
from betasigma.devices import use_threads
from betasigma.errors import UserError, first_line
from betasigma.runs.start import Start, subcommand
from betasigma.runs.status import FAILED, process_rank, read_status, started_by

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", THREADS)
"""Environment variables that tell Lightning's processes their rank, world size and threads."""

EXIT_TIMEOUT = 60.0
"""Seconds that the other processes have to end by themselves."""

REASON_TIMEOUT = 10.0
"""Seconds in which a process that has failed says why."""

LONGEST_WAIT = timedelta(days=30)
"""For which a process waits for the others. One that fails ends them at once; they are no sooner
done because they are slow.
"""

PEER_GONE = "gloo/transport"
"""In the error of an exchange with a process that has ended."""

Processes = Sequence["subprocess.Popen[bytes]"]


@contextmanager
def launched_processes(trainer: Trainer, start: Start, resume: str | None) -> Iterator[None]:
    """Inside the block ``trainer`` may start the run's other processes; at its end they end."""
    with _command_of_this_run(start, resume):
        try:
            yield
            trainer.strategy.barrier()
        except BaseException:
            _end_processes(_taken_from(trainer.strategy.launcher), terminate=True)
            raise
        finally:
            _leave_group()
            _end_processes(_taken_from(trainer.strategy.launcher))


@contextmanager
def shared_work(hardware: dict[str, Any], start: Start) -> Iterator[torch.device | None]:
    """Inside the block as many processes as ``hardware`` says do the same work, each its share.

    Where torchrun or SLURM has not started them the first process does. They exchange what they
    have found over ``torch.distributed``, which also tells them their rank.

    Yields:
        The device of this process; ``None`` where it is alone and may choose.

    Raises:
        UserError: where another process has failed, as soon as that is known.
    """
    devices = 1 if hardware["devices"] == "auto" else hardware["devices"]
    if devices * hardware["nodes"] == 1:
        yield None
        return
    fabric = Fabric(
        accelerator=hardware["accelerator"],
        devices=devices,
        num_nodes=hardware["nodes"],
        # over the network also between GPUs: it is little, at the end, and a process that waits
        # learns there when another one has ended
        strategy=DDPStrategy(process_group_backend="gloo", timeout=LONGEST_WAIT),
        plugins=[_environment()],
    )
    use_threads({**hardware, "devices": devices})  # which the others are told
    with _command_of_this_run(start):
        if process_rank() != 0 and started_by() is None:
            _end_with_parent()
        others: Processes = ()
        try:
            _launch(fabric)
            others = _taken_from(fabric.strategy.launcher)
            with _raising_when_one_fails(others, start.directory):
                yield fabric.device
                fabric.strategy.barrier()
        except BaseException:
            _end_processes([*others, *_taken_from(fabric.strategy.launcher)], terminate=True)
            raise
        finally:
            _leave_group()
            _end_processes(others)


def _launch(fabric: Fabric) -> None:
    """Start the other processes, where nothing else has, and meet them.

    Raises:
        UserError: if they cannot meet.
    """
    try:
        fabric.launch()
    except torch.distributed.DistError as error:
        address = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes of this command cannot meet at {address} ({first_line(error)}): see "
            f"that MASTER_ADDR is the machine of the first one, and MASTER_PORT a free port there"
        ) from None


def _environment() -> ClusterEnvironment:
    """What tells the processes their ranks: whatever has started them, else Lightning."""
    starter = started_by()
    if starter is None:
        return LightningEnvironment()
    if starter.name == "torchrun":
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False)


@contextmanager
def _command_of_this_run(start: Start, resume: str | None = None) -> Iterator[None]:
    """Inside the block the command line of this process is that of this run alone.

    Its words are those that were typed, so that every process reads the same config from them.
    """
    arguments, variables = sys.argv, {name: os.environ.get(name) for name in VARIABLES}
    found = f"resume={resume or 'null'}"
    words = [found if word == "resume=auto" else word for word in start.words]
    sys.argv = [arguments[0], *subcommand(), *words]
    if HydraConfig.initialized():  # where Lightning reads the run directory
        config: Any = HydraConfig.instance().cfg
        with read_write(config.hydra):
            config.hydra.run.dir = str(start.directory)
    os.environ[THREADS] = str(torch.get_num_threads())  # else Lightning counts, without a quota
    try:
        yield
    finally:
        sys.argv = arguments
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _taken_from(launcher: Any) -> Processes:
    """The processes that this one has started. Lightning no longer watches them, which would kill
    this process with them.
    """
    started: list[subprocess.Popen[bytes]] = getattr(launcher, "procs", [])
    taken = list(started)
    started.clear()
    return taken


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _end_processes(others: Processes, terminate: bool = False) -> None:
    """Wait until other processes end; ``terminate`` asks them to."""
    for process in others:
        if terminate:
            process.terminate()
    for process in others:
        try:
            process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _raising_when_one_fails(others: Processes, run: Path) -> Iterator[None]:
    """Inside the block this process raises when another fails: one that it has started at once,
    any other when they exchange something.
    """
    before = signal.getsignal(signal.SIGCHLD)

    def look(number: int, frame: Any) -> None:
        if callable(before):
            before(number, frame)
        failure = _failure(others, run)
        if failure is not None:
            raise UserError(failure)

    watched = bool(others) and threading.current_thread() is threading.main_thread()
    if watched:
        signal.signal(signal.SIGCHLD, look)
    try:
        yield
    except RuntimeError as error:
        if PEER_GONE not in str(error):
            raise
        raise UserError(_why_another_ended(others, run)) from None
    finally:
        if watched:
            signal.signal(signal.SIGCHLD, before)


def _failure(others: Processes, run: Path) -> str | None:
    """Which of the processes that this one has started has failed, and why; ``None`` if none."""
    for number, process in enumerate(others, 2):
        if not process.poll():
            continue
        status = read_status(run)
        if process.returncode < 0:
            how = f"was ended by {signal.Signals(-process.returncode).name}"
        elif status.get("status") == FAILED:
            how = f"has failed: {status['error']}"
        else:
            how = f"has ended with status {process.returncode}"
        return f"process {number} of {len(others) + 1} {how}"
    return None


def _why_another_ended(others: Processes, run: Path) -> str:
    """Why an exchange with other processes has failed, as soon as one of them has said it."""
    deadline = time.monotonic() + REASON_TIMEOUT
    while time.monotonic() < deadline:
        failure = _failure(others, run)
        if failure is not None:
            return failure
        status = read_status(run)
        if status.get("status") == FAILED:
            return f"another process of this command has failed: {status['error']}"
        time.sleep(0.1)
    return "another process of this command has ended before its work was done"


def _end_with_parent() -> None:
    """Have the system end this process when the one that has started it ends (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


PR_SET_PDEATHSIG = 1
"""Option of ``prctl`` (sys/prctl.h): the signal to receive when the parent ends."""
