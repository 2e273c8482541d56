"""Load a model from a checkpoint."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch

from betasigma.commands.assemble import make_data, make_denoiser, make_oracle, make_sampler
from betasigma.commands.checks import saved_facts
from betasigma.commands.config import saved_header, trains
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.oracles import ExactDenoiser
from betasigma.prior import DataMoments
from betasigma.runs.checkpoint import AVERAGED, MOMENTS, read
from betasigma.runs.header import checkpoint_path
from betasigma.samplers import Sampler


class Loaded(NamedTuple):
    """A trained model."""

    denoiser: Denoiser | ExactDenoiser
    """Has the averaged weights; in evaluation mode, on the CPU."""
    sampler: Sampler
    """The sampler that the run was configured with."""
    config: dict[str, Any]
    """The run's resolved config."""
    step: int
    """Optimizer steps that the weights have seen."""
    classes: tuple[str, ...] = ()
    """Names of the class labels; ``()`` for none."""


def load_run(
    path: str | Path, precision: torch.dtype | None = None, location: dict[str, Any] | None = None
) -> Loaded:
    """Load the model of a run directory or a checkpoint. No code from the file is run.

    Args:
        path: the run directory or the checkpoint.
        precision: dtype of the network's arithmetic.
        location: ``root`` and ``download`` of the data, if they have moved since the run. Only an
            oracle reads them.

    Raises:
        UserError: if there is no checkpoint, it is damaged or of a newer format, or its config
            names code that the user has not allowed.
    """
    header = saved_header(path)
    contents = read(checkpoint_path(path))
    config = with_data_location(header["config"], location or {})
    denoiser: Denoiser | ExactDenoiser
    if trains(config):
        low, high = header["value_range"]
        denoiser = make_denoiser(config, saved_facts(header).shape, (low, high), precision)
        denoiser.moments = _moments(contents, denoiser.sample_shape, path)
    else:
        data = make_data(config)
        data.prepare_data()
        denoiser = make_oracle(config, data)
    try:
        denoiser.load_state_dict(averaged_weights(contents))
    except RuntimeError:
        raise UserError(f"run={path} has weights that do not fit its config") from None
    return Loaded(
        denoiser.requires_grad_(False).eval(),
        make_sampler(config["sampler"]),
        config,
        header["step"],
        tuple(header.get("classes") or map(str, range(denoiser.num_classes))),
    )


def averaged_weights(contents: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint, by their names in the denoiser."""
    return {
        name.removeprefix(AVERAGED): value
        for name, value in contents["state_dict"].items()
        if name.startswith(AVERAGED)
    }


def weights_key(loaded: Loaded) -> str:
    """Hex digest that changes when the weights do, or what an oracle knows."""
    digest = blake2b(digest_size=16)
    tensors = {**dict(loaded.denoiser.named_buffers()), **loaded.denoiser.state_dict()}
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # a copy: what contiguous() leaves as it is may have a stride that has no bytes to view
        plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_data_location(config: dict[str, Any], location: dict[str, Any]) -> dict[str, Any]:
    """Return the run's config with the values of ``location`` in its ``data`` node."""
    given = {key: value for key, value in location.items() if value is not None}
    return {**config, "data": {**config["data"], **given}}


def _moments(
    contents: dict[str, Any], shape: tuple[int, ...], path: str | Path
) -> DataMoments | None:
    """Return the moments of the training data; ``None`` for early checkpoints."""
    saved = contents.get(MOMENTS)
    if saved is None:
        return None
    if isinstance(saved, dict):
        found = [v for k in ("mean", "variance") if isinstance(v := saved.get(k), torch.Tensor)]
        if [v.shape for v in found] == [shape, shape]:
            return DataMoments(*found)
    raise UserError(f"run={path} has moments of the data that do not fit its config")
