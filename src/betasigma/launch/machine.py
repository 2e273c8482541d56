"""Check what depends on this machine: GPUs, accounts, and who starts processes on it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from betasigma.commands.checks import typed_keys
from betasigma.errors import UserError
from betasigma.launch.slurm import is_cluster
from betasigma.runs.status import TORCHRUN, StartedBy
from betasigma.training.account import logged_in


def check_machine(config: DictConfig) -> None:
    """Refuse a run that is impossible on this machine.

    Raises:
        UserError: if it needs GPUs or an account that do not exist here.
    """
    if not is_cluster(config):  # whose nodes have GPUs that this machine has not
        _check_gpus(config)
    if OmegaConf.select(config, "logger.mode") == "online" and not logged_in():
        raise UserError(
            "logger.mode=online needs an account: type wandb login first, or leave it at auto"
        )


def fit_processes(
    config: DictConfig, starter: StartedBy | None, overrides: Sequence[str]
) -> list[str]:
    """Have ``hardware`` say how many processes there are, unless the user types a number.

    Args:
        config: of a run.
        starter: what has started its processes, if anything has.
        overrides: as typed.

    Returns:
        The override that says it; none where nothing has started processes.

    Raises:
        UserError: where it says another number, or of processes on other machines that nothing
            would start.
    """
    hardware = config.get("hardware")
    if hardware is None:
        return []
    nodes, devices = hardware.nodes, hardware.devices
    if starter is None and TORCHRUN in os.environ:
        starter = StartedBy("torchrun", 1)
    if starter is None:
        if nodes > 1 and "NODE_RANK" not in os.environ:
            raise UserError(
                f"hardware.nodes={nodes} needs something that starts the processes of other "
                f"machines: torchrun, srun, or a sweep with cluster=slurm"
            )
        return []
    if devices == "auto" or not any("hardware.devices" in typed_keys(word) for word in overrides):
        devices = hardware.devices = max(starter.processes // nodes, 1)
    if devices * nodes != starter.processes:
        raise UserError(
            f"hardware.devices={devices} and hardware.nodes={nodes} are {devices * nodes} "
            f"processes, and {starter.name} has started {starter.processes}: make them equal"
        )
    if starter.name == "srun":  # which leaves it out, or keeps that of the allocation
        os.environ["SLURM_NTASKS_PER_NODE"] = str(devices)
    return [f"hardware.devices={devices}"]


def _check_gpus(config: DictConfig) -> None:
    hardware = config.get("hardware")
    if hardware is None or hardware.accelerator == "cpu":
        return
    several = hardware.devices != "auto" and hardware.devices > 1
    if hardware.accelerator == "auto" and not several:
        return
    import torch  # seconds, which only a run that asks for GPUs or several devices spends

    found = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if not found and hardware.accelerator == "auto":
        return  # the processes compute on the CPU
    if not found:
        raise UserError(
            "hardware.accelerator=gpu finds no GPU that this PyTorch can use on this machine: "
            "leave hardware at auto, or give hardware=cpu"
        )
    if hardware.devices != "auto" and hardware.devices > found:
        raise UserError(
            f"hardware.devices={hardware.devices} are more GPUs than this machine has: give "
            f"hardware.devices={found}{' or fewer' if found > 1 else ''}, or "
            f"hardware.accelerator=cpu"
        )
