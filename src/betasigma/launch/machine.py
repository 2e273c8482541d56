"""Check what depends on this machine: GPUs, accounts, and who starts processes on it."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf

from betasigma.errors import UserError
from betasigma.launch.slurm import is_cluster
from betasigma.runs.status import StartedBy
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


def fit_processes(config: DictConfig, starter: StartedBy | None) -> None:
    """Have ``hardware`` say how many processes there are, where it leaves that open.

    Args:
        config: of a run.
        starter: what has started its processes, if anything has.

    Raises:
        UserError: where it says another number, or of processes on other machines that nothing
            would start.
    """
    hardware = config.get("hardware")
    if hardware is None:
        return
    nodes, devices = hardware.nodes, hardware.devices
    if starter is None:
        if nodes > 1 and "NODE_RANK" not in os.environ:
            raise UserError(
                f"hardware.nodes={nodes} needs something that starts the processes of other "
                f"machines: torchrun, srun, or a sweep with cluster=slurm"
            )
        return
    if devices == "auto":
        devices = hardware.devices = max(starter.processes // nodes, 1)
    if devices * nodes != starter.processes:
        raise UserError(
            f"hardware.devices={devices} and hardware.nodes={nodes} are {devices * nodes} "
            f"processes, and {starter.name} has started {starter.processes}: make them equal"
        )
    if starter.name == "srun":  # which leaves it out, or keeps that of the allocation
        os.environ["SLURM_NTASKS_PER_NODE"] = str(devices)


def _check_gpus(config: DictConfig) -> None:
    hardware = config.get("hardware")
    if hardware is None or hardware.accelerator != "gpu":
        return
    import torch  # seconds, which only a run that asks for GPUs spends

    found = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if not found:
        raise UserError(
            "hardware.accelerator=gpu finds no GPU that this PyTorch can use on this machine: "
            "leave hardware at auto, or give hardware=cpu"
        )
    if hardware.devices != "auto" and hardware.devices > found:
        raise UserError(f"hardware.devices={hardware.devices} are more than this machine's {found}")
