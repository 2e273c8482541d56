"""The denoiser as one graph of tensors: a ``torch.export`` program, and ONNX.

The graph answers as :class:`~betasigma.denoiser.Denoiser` does at the model's own levels, numbered
from 0, the least noise, as DDPM's code numbers its steps: x̂_0 and ε̂ of x_t. Whoever samples with
it needs α and σ of the levels besides, which are written beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from betasigma.denoiser import Denoiser, expand
from betasigma.errors import UserError, first_line
from betasigma.options.apps import require_onnx

OUTPUTS = ("x0", "eps")


class LevelDenoiser(nn.Module):
    """x̂_0 and ε̂ at a level of the model.

    Args:
        denoiser: with the weights to write.
    """

    c_in: Tensor
    c_noise: Tensor
    x0_skip: Tensor
    x0_out: Tensor
    eps_skip: Tensor
    eps_out: Tensor

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.network = denoiser.network
        self.channels = denoiser.sample_shape[0]
        self.labelled = denoiser.num_classes > 0
        times = denoiser.schedule.times()
        alpha, sigma, _ = denoiser.schedule.at(times)
        c_in, c_skip, c_out, c_noise = denoiser.preconditioning(times, alpha, sigma)
        skip = 1 - alpha * c_skip
        skip = torch.where(skip.abs() < 1e-12, 0.0, skip)  # as Prediction.eps
        tables = {
            "c_in": c_in,
            "c_noise": c_noise,
            "x0_skip": c_skip,
            "x0_out": c_out,
            "eps_skip": skip / sigma,
            "eps_out": -alpha * c_out / sigma,
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float())

    def forward(
        self, x_t: Tensor, level: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Denoise.

        Args:
            x_t: float32 ``(batch, *sample_shape)``.
            level: int64 ``(batch,)``, 0 … levels − 1, rising with the noise.
            labels: int64 ``(batch,)``, of a model with classes; the number of classes itself means
                "no label".

        Returns:
            x̂_0 and ε̂, the shape of ``x_t``.
        """

        def at(table: Tensor) -> Tensor:
            return table[level].reshape(-1, *[1] * (x_t.ndim - 1))

        output = self.network(x_t * at(self.c_in), self.c_noise[level], labels)
        output = output[:, : self.channels]  # without a learned variance
        x0 = at(self.x0_skip) * x_t + at(self.x0_out) * output
        return x0, at(self.eps_skip) * x_t + at(self.eps_out) * output


def example(denoiser: Denoiser, batch: int = 2) -> dict[str, Tensor]:
    """Inputs of :class:`LevelDenoiser`, with noise of the size that each level has."""
    generator = torch.Generator().manual_seed(0)
    levels = denoiser.schedule.levels
    level = torch.randint(levels, (batch,), generator=generator)
    noise = torch.randn(batch, *denoiser.sample_shape, generator=generator)
    sigma = denoiser.schedule.sigma(denoiser.schedule.times()[level])
    inputs = {"x_t": noise * expand(sigma, noise), "level": level}
    if denoiser.num_classes:
        inputs["labels"] = torch.randint(denoiser.num_classes, (batch,), generator=generator)
    return inputs


def write_program(denoiser: Denoiser, path: Path) -> float:
    """Write a ``torch.export`` program, ``torch.export.load(path).module()(x_t, level)``.

    Returns:
        Its largest difference from the denoiser, at another batch size than it was exported with.
    """
    program = _exported(denoiser, "torch_export")
    written = BytesIO()
    torch.export.save(program, written)  # which aborts the process where a disk is full
    path.write_bytes(written.getbuffer())
    module = torch.export.load(path).module()
    return difference(denoiser, lambda inputs: module(**inputs))


def write_onnx(denoiser: Denoiser, path: Path) -> float | None:
    """Write an ONNX model with inputs ``x_t``, ``level`` and, with classes, ``labels``.

    Returns:
        Its largest difference from the denoiser in onnxruntime; ``None`` where that is not
        installed.

    Raises:
        UserError: where the network cannot be exported, or what writes the graph is not installed.
    """
    try:
        require_onnx("write_onnx")
    except ValueError as error:
        raise UserError(str(error)) from None
    program = _exported(denoiser, "onnx")
    inputs = example(denoiser)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it warns of what it leaves as it is
    converted = torch.onnx.export(
        program,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=list(OUTPUTS),
        dynamo=True,
        verbose=False,
    )
    assert converted is not None
    converted.save(path, external_data=False)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        found = session.run(OUTPUTS, {name: value.numpy() for name, value in inputs.items()})
        return [torch.from_numpy(value) for value in found]

    return difference(denoiser, run)


@torch.no_grad()
def difference(denoiser: Denoiser, run: Callable[[dict[str, Tensor]], Any]) -> float:
    """Largest difference of an exported model from the denoiser, in units of the largest number."""
    inputs = example(denoiser, batch=5)
    worst = 0.0
    for row, found in enumerate(zip(*run(inputs), strict=True)):
        t = denoiser.schedule.times()[inputs["level"][row]]
        labels = inputs["labels"][row : row + 1] if denoiser.num_classes else None
        expected = denoiser(inputs["x_t"][row : row + 1], t, labels)
        for ours, theirs in zip((expected.x0, expected.eps), found, strict=True):
            scale = max(1.0, ours.abs().max().item())
            worst = max(worst, (ours[0] - theirs).abs().max().item() / scale)
    return worst


def _exported(denoiser: Denoiser, to: str) -> torch.export.ExportedProgram:
    inputs = example(denoiser)
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(
                LevelDenoiser(denoiser).eval(),
                (),
                inputs,
                dynamic_shapes={name: {0: batch} for name in inputs},
            )
    except Exception as error:  # of PyTorch's tracer, which may raise anything
        raise UserError(
            f"to={to} does not fit network={type(denoiser.network).__name__}, which PyTorch cannot "
            f"trace: {first_line(error)}"
        ) from error
