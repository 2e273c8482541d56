"""``hardware.strategy=fsdp``: each process keeps a part of the network that is trained.

Of the 20 bytes that training keeps a parameter (weight, gradient, Adam's two moments, average), 16
are shared out; a block's weights are whole only while it moves or computes. The average stays whole
on every device, so that samples, validation and evaluation need nothing of the other processes.

PyTorch's ``fully_shard`` does it. Lightning's own strategy of this name takes GPUs only and puts
another optimizer state into checkpoints. Here a checkpoint is the same file as that of any run: it
continues on one device, and one of one device continues here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from betasigma.modules import DiffusionModule
from betasigma.modules.averaging import is_in_parts, whole


class FullySharded(DDPStrategy):
    """Lightning's processes of DDP, with the trained network in parts instead of copied."""

    strategy_name = "fsdp"

    def setup(self, trainer: Trainer) -> None:
        """Share out the parameters before anything moves to the device, and before the optimizer is
        made from them. A validation after that finds all processes alike.
        """
        module = self.lightning_module
        assert module is not None
        shared = any(is_in_parts(parameter) for parameter in module.parameters())
        if shared and trainer.state.fn != TrainerFn.FITTING:
            self.model_to_device()
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._share_out()
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """There are no copies to keep alike."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights; all ranks call it together."""
        return self._whole(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as an optimizer of whole parameters has it; all ranks call it together."""
        state: Any = super().optimizer_state(optimizer)
        return {**state, "state": {k: self._whole(v) for k, v in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Share out the optimizer's state as its parameters are."""
        (optimizer,) = self.optimizers
        (saved,) = checkpoint["optimizer_states"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = {
            number: {key: _as_parameter(value, parameters[number]) for key, value in own.items()}
            for number, own in saved["state"].items()
        }
        optimizer.load_state_dict({**saved, "state": state})

    def _share_out(self) -> None:
        """Move a block at a time to the device and keep a part of it: none ever holds all of the
        trained weights.
        """
        module = self.lightning_module
        assert isinstance(module, DiffusionModule)
        for tensor in [*module.parameters(), *module.buffers()]:
            sent = tensor.detach().to(self.root_device)  # NCCL sends between GPUs only
            torch.distributed.broadcast(sent, 0)
            tensor.detach().copy_(sent)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        network = module.denoiser.network
        for block in blocks(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)

    def _whole(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Whole tensors in memory; the first rank writes them, the others only help to gather."""
        found = {}
        for name, value in values.items():
            if isinstance(value, DTensor):
                value = whole(value)
                value = value.cpu() if self.is_global_zero else value.new_empty(0)
            found[name] = value
        return found


def blocks(network: nn.Module) -> list[nn.Module]:
    """Parts of a network that compute one after the other: what its outermost lists hold."""
    found: list[nn.Module] = []
    for child in network.children():
        is_block = isinstance(network, nn.ModuleList) and not isinstance(child, nn.ModuleList)
        found += [child] if is_block else blocks(child)
    return [block for block in found if any(True for _ in block.parameters())]


def _as_parameter(value: Any, parameter: Tensor) -> Any:
    """A tensor of a parameter's shape in parts as the parameter is; anything else as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        return value
    placed = value.to(parameter.device)
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements)
