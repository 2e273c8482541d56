"""Counter-based randomness: every random number is a function of what it is for, not of when it was
asked for.

A generator that is advanced draw by draw makes a result depend on everything that drew before it:
on the batch size, on the number of devices, on whether a sampling pass ran in between. Here a draw
is addressed instead, by a *key* (for example ``("noise", seed, step)``) and the *index* of the
example it belongs to. Two consequences carry the framework's promises:

- a training run resumed at step k draws exactly what the uninterrupted run drew at step k;
- sample ``i`` of seed ``s`` is the same image whatever the batch it was drawn in.

Numbers are drawn for fixed blocks of ``BLOCK`` consecutive indices, one generator per block, so
that the cost is that of an ordinary vectorised draw. On the CPU the generator is Philox-4x64
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the key hashed to its
128-bit key and the block as the high word of its counter; on other devices it is the device's own
generator, seeded by a 64-bit hash of key and block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 16
"""Number of consecutive example indices that share a generator."""

Key = int | str


def digest(*key: Key, size: int = 8) -> int:
    """Unsigned ``8 * size``-bit integer that depends on every part of ``key`` (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=size).digest(), "little")


def philox(*key: Key, counter: int = 0) -> np.random.Generator:
    """NumPy generator on the Philox stream of ``key``, at block ``counter`` of it."""
    bits = np.random.Philox(key=digest(*key, size=16), counter=[0, 0, 0, counter])
    return np.random.Generator(bits)


def seed_global(*key: Key, device: torch.device | str = "cpu") -> None:
    """Seed PyTorch's global generators of the CPU and of ``device``, from which dropout draws, from
    ``key``.

    Not by ``torch.manual_seed``, which takes a stack trace for every kind of device that is not
    there, at every step: tens of times what the seeding itself costs.
    """
    seed = digest(*key) >> 1
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class Stream:
    """Random numbers for a batch of examples; row ``j`` is a function of ``(key, indices[j], number
    of the call)``.

    Args:
        key: what the numbers are for, e.g. ``"noise", seed, step``.
        indices: example indices ≥ 0, shape ``(n,)``.
        device: where ``normal`` and ``uniform`` put their result unless told otherwise.
    """

    def __init__(
        self, *key: Key, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu"
    ) -> None:
        index = np.asarray(indices, dtype=np.int64)
        if index.ndim != 1 or (index.size and index.min() < 0):
            raise ValueError(
                f"indices must be a vector of integers ≥ 0, not of shape {index.shape}"
            )
        self.key = key
        self.device = torch.device(device)
        self.size = index.size
        blocks, inverse = np.unique(index // BLOCK, return_inverse=True)
        rows = inverse * BLOCK + index % BLOCK
        self._blocks = [int(block) for block in blocks]
        whole = np.array_equal(rows, np.arange(len(blocks) * BLOCK))
        self._rows = None if whole else torch.from_numpy(rows)
        self._host: list[np.random.Generator] | None = None
        self._local: list[torch.Generator] | None = None

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: str | None = None
    ) -> Tensor:
        """Standard normal numbers, shape ``(n, *shape)``."""
        if self._on_host(device):
            return self._pick(
                [g.standard_normal((BLOCK, *shape), _NUMPY[dtype]) for g in self._host_generators()]
            )
        return self._pick_local(
            [
                torch.randn((BLOCK, *shape), generator=g, device=self.device, dtype=dtype)
                for g in self._local_generators()
            ]
        )

    def uniform(
        self,
        shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float64,
        device: str | None = None,
    ) -> Tensor:
        """Numbers uniform on [0, 1), shape ``(n, *shape)``."""
        if self._on_host(device):
            return self._pick(
                [g.random((BLOCK, *shape), _NUMPY[dtype]) for g in self._host_generators()]
            )
        return self._pick_local(
            [
                torch.rand((BLOCK, *shape), generator=g, device=self.device, dtype=dtype)
                for g in self._local_generators()
            ]
        )

    def integers(self, low: int, high: int) -> Tensor:
        """Integers uniform on {low, …, high − 1}, shape ``(n,)``, int64 on the CPU."""
        return self._pick([g.integers(low, high, BLOCK) for g in self._host_generators()])

    def _on_host(self, device: str | None) -> bool:
        return (torch.device(device) if device else self.device).type == "cpu"

    def _host_generators(self) -> list[np.random.Generator]:
        if self._host is None:
            self._host = [philox(*self.key, counter=block) for block in self._blocks]
        return self._host

    def _local_generators(self) -> list[torch.Generator]:
        if self._local is None:
            self._local = [
                torch.Generator(self.device).manual_seed(digest(*self.key, block) >> 1)
                for block in self._blocks
            ]
        return self._local

    def _pick(self, draws: list[np.ndarray]) -> Tensor:
        drawn = torch.from_numpy(np.concatenate(draws) if len(draws) != 1 else draws[0])
        return drawn if self._rows is None else drawn[self._rows]

    def _pick_local(self, draws: list[Tensor]) -> Tensor:
        drawn = torch.cat(draws)
        return drawn if self._rows is None else drawn[self._rows.to(self.device)]


_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
