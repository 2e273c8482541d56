r"""Nearest training neighbours of samples, in pixel space: has the model learned by heart?

A model that memorises has an excellent Fréchet distance to its training data. Its samples betray
it: each lies next to a training image. How near is near depends on the data, so distances are
compared with those of held-out images,

    nn_distance_ratio = mean_x min_i |x − x_i|  /  mean_h min_i |h − x_i|,    x samples, h test
    images,

which is 1 for samples as new as test images and falls to 0 as training images are copied. (Smooth
or blurred samples lie nearer to everything; read it together with the Fréchet distance.)

|x − x_i|² = |x|² − 2xᵀx_i + |x_i|² makes the search one matrix product per chunk of training
images, whatever the size of the set. The nearest one's distance is then computed again from the
difference, so that a copy is at distance 0 exactly and not at the rounding of the product.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from betasigma.evaluation.features import full_precision

QUERIES_AT_ONCE = 1024


def nearest(queries: Tensor, train: Iterable[Tensor], device: torch.device | str = "cpu") -> Tensor:
    """L2 distance of each query to its nearest training example, float64 ``(n,)``, in pixel values
    (0 … 255) or data units; infinite where there are no examples. See :func:`nearest_examples`.
    """
    return nearest_examples(queries, train, device)[0][:, 0]


@torch.inference_mode()
def nearest_examples(
    queries: Tensor, train: Iterable[Tensor], device: torch.device | str = "cpu", number: int = 1
) -> tuple[Tensor, Tensor]:
    """L2 distances to the training examples that are nearest to each query, float64
    ``(n, number)``, the nearest first, and which these are, int64.

    Args:
        queries: uint8 images ``(n, C, H, W)`` or float points ``(n, d)``.
        train: batches of the same kind; each is searched by one matrix product, so a few thousand
            examples a batch are fastest.
        device: where to compute.
        number: how many of each.
    """
    device = torch.device(device)
    query = _vectors(queries, device)
    squares = torch.full((len(query), number), torch.inf, dtype=torch.float64, device=device)
    indices = torch.zeros(len(query), number, dtype=torch.int64, device=device)
    before = 0
    with full_precision(device):
        for batch in train:
            chunk = _vectors(batch, device)
            lengths, most = chunk.square().sum(1), min(number, len(chunk))
            for rows in torch.arange(len(query), device=device).split(QUERIES_AT_ONCE):
                product = torch.addmm(lengths, query[rows], chunk.T, alpha=-2)
                found = product.topk(most, largest=False).indices
                exact = (query[rows, None] - chunk[found]).double().square().sum(2)
                known = torch.cat([squares[rows], exact], 1)
                squares[rows], order = known.topk(number, largest=False)
                indices[rows] = torch.cat([indices[rows], before + found], 1).gather(1, order)
            before += len(chunk)
    return squares.sqrt().cpu(), indices.cpu()


def distance_ratio(samples: Tensor, held_out: Tensor) -> float:
    """``nn_distance_ratio`` of the nearest distances of samples and of held-out data, ``(n,)``
    and ``(m,)``; NaN where the held-out data are in the training data."""
    scale = float(held_out.mean())
    return float(samples.mean()) / scale if scale > 0 else float("nan")


def _vectors(x: Tensor, device: torch.device) -> Tensor:
    """Examples as rows: pixels in float32, centred, which leaves distances alone and rounding
    smaller; points, which may lie arbitrarily close, in float64."""
    flat = x.to(device).flatten(1)
    return flat.float() - 127.5 if flat.dtype == torch.uint8 else flat.double()
