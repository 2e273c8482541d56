"""Check what depends on this machine: GPUs and accounts."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from betasigma.errors import UserError
from betasigma.launch.slurm import is_cluster
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
