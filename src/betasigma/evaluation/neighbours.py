r"""Nearest training neighbours of samples, in pixel space: has the model learned by heart?

A model that memorises has an excellent Fréchet distance to its training data. Its samples betray
it: each lies next to a training image. How near is near depends on the data, so distances are
compared with those of held-out images,

    nn_distance_ratio = mean_x min_i |x − x_i|  /  mean_h min_i |h − x_i|,    x samples, h test
    images,

which is 1 for samples as new as test images and falls to 0 as training images are copied. (Smooth
or blurred samples lie nearer to everything; read it together with the Fréchet distance.)

|x − x_i|² = |x|² − 2xᵀx_i + |x_i|² makes the search one matrix product per chunk of training
images, whatever the size of the set. The candidates' distances are then computed again from the
differences, so that a copy is at distance 0 exactly and not at the rounding of the product.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from betasigma.evaluation.features import full_precision

QUERIES_AT_ONCE = 1024


class Neighbours(NamedTuple):
    """Nearest training examples of each query, nearest first."""

    indices: Tensor
    """Positions in the training split, int64 ``(n, k)``; −1 where there are fewer than k."""
    distances: Tensor
    """L2 distances in pixel values (0 … 255) or data units, float64 ``(n, k)``."""


@torch.inference_mode()
def nearest(
    queries: Tensor,
    train: Iterable[Tensor],
    k: int = 1,
    device: torch.device | str = "cpu",
) -> Neighbours:
    """Find the ``k`` nearest training examples of each query.

    Args:
        queries: uint8 images ``(n, C, H, W)`` or float points ``(n, d)``.
        train: batches of the same kind; each is searched by one matrix product, so a few thousand
            examples a batch are fastest.
        k: number of neighbours ≥ 1.
        device: where to compute.
    """
    device = torch.device(device)
    query = _vectors(queries, device)
    best = torch.full((len(query), k), torch.inf, dtype=torch.float64, device=device)
    index = torch.full((len(query), k), -1, dtype=torch.int64, device=device)
    first = 0
    with full_precision(device):
        for batch in train:
            chunk = _vectors(batch, device)
            for rows in torch.arange(len(query), device=device).split(QUERIES_AT_ONCE):
                squares, found = _search(query[rows], chunk, k)
                best[rows], index[rows] = _nearer(best[rows], index[rows], squares, found + first)
            first += len(chunk)
    return Neighbours(index.cpu(), best.sqrt().cpu())


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


def _search(query: Tensor, chunk: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances (exact) and positions of the nearest in one chunk, ``(n, ≤ k)``."""
    rank = torch.addmm(chunk.square().sum(1), query, chunk.T, alpha=-2)
    found = rank.topk(min(k, len(chunk)), largest=False).indices
    columns = [(query - chunk[column]).double().square().sum(1) for column in found.unbind(1)]
    return torch.stack(columns, 1), found


def _nearer(best: Tensor, index: Tensor, squares: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The k nearest of those known and those found."""
    everything = torch.cat([best, squares], 1)
    kept, where = everything.topk(best.shape[1], largest=False)
    return kept, torch.cat([index, found], 1).gather(1, where)
