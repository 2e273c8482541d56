"""Run directories as training leaves them, made without training."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from betasigma.pictures import grid, save
from betasigma.runs.record import Record

EXTRACTOR = "efficientnet_lite0"
VALIDATED = 360
"""Images of a validation."""


def make_run(
    path: Path,
    family: str = "ddpm",
    seed: int = 0,
    lr: float = 0.001,
    *,
    steps: Iterable[int] = (10, 20, 30),
    n: int = 100,
    data: str = "digits",
    status: str = "finished",
    evaluated: Iterable[int] = (),
    pictures: bool = True,
    **config: Any,
) -> Path:
    """A run on 8×8 images. Its denoising error is level/step, so that every value is known; NCSN's
    level is 2, DDPM's 4, and ``lr`` divides it by 1 + 100 lr.

    Args:
        path: the directory.
        evaluated: NFE of evaluations by DDIM, of distance 100/NFE.
        config: more of it.
    """
    path.mkdir(parents=True)
    shape = [1, 8, 8]
    content = {
        "name": "made",
        "seed": seed,
        "steps": 30,
        "batch_size": 16,
        "tags": [],
        "model": {"name": family, "family": family, "value_range": [-1.0, 1.0]},
        "optimizer": {"lr": lr},
        "data": {"name": data},
        **config,
    }
    OmegaConf.save(OmegaConf.create(content), path / "config.yaml")
    asked = [f"model={family}", f"seed={seed}", f"optimizer.lr={lr}"]
    (path / ".hydra").mkdir()
    (path / "data.json").write_text(
        json.dumps({"name": data, "shape": shape, "train": {"order": f"{data} a"}, "test": {}})
    )
    (path / "environment.json").write_text(
        json.dumps(
            {
                "command": ["train.py", *asked],
                "overrides": asked,
                "started": "2026-01-01T00:00:00+0000",
                "python": "3.11",
                "packages": {"torch": "2.14.1"},
                "git": {"commit": "abc", "branch": "main", "changes": ""},
            }
        )
    )
    write_status(path, status)
    (path / "log.txt").write_text("first line\nlast line\n", encoding="utf-8")
    grow(path, family, lr, steps, seed)
    told = {"n": n, "sampler": "ddim", "seed": seed, "extractor": EXTRACTOR, "n_reference": 1437}
    record = Record.of(path)
    last = max(steps, default=0)
    for nfe in evaluated:
        more = {**told, "nfe": nfe, "split": "train", "settings": f"steps={nfe} eta=0.0"}
        record.append(last, {f"eval/fd_{EXTRACTOR}": 100 / nfe + seed}, {**more, "best": "min"})
        shares = {f"eval/precision_{EXTRACTOR}": 0.8, f"eval/recall_{EXTRACTOR}": 0.5}
        record.append(last, shares, {**more, "best": "max"})
        record.append(last, {f"eval/fd_{EXTRACTOR}_floor": 2.5}, {**told, "seed": None})
    images = {"n": 32, "nfe": 33, "split": "test", "extractor": "pixels"}
    terms = {"prior": 0.5, "diffusion": 2.0, "decoder": 1.0, "total": 3.5}
    named = {f"val/bits_per_dim/continuous_bound/{k}_test": v for k, v in terms.items()}
    record.append(last, named, {**images, "settings": "draws=32"})
    if pictures:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            images = torch.randint(256, (6, *shape), generator=generator, dtype=torch.uint8)
            save(grid(images), path / "samples" / f"step_{step:07d}.png")
    return path


def write_status(path: Path, status: str, **more: Any) -> None:
    known = {"status": status, "started": "2026-01-01T00:00:00+0000", "job": None}
    here = {"host": socket.gethostname(), "process": os.getpid(), "slurm_job": None}
    error = "RuntimeError: it broke" if status == "failed" else None
    (path / "status.json").write_text(json.dumps({**known, **here, "error": error, **more}))


def grow(path: Path, family: str, lr: float, steps: Iterable[int], seed: int = 0) -> None:
    """Add the values of some more steps."""
    level = level_of(family, lr, seed)
    record = Record.of(path)
    for step in steps:
        record.append(step, {"train/images_per_second": 160.0, "train/objective": level})
        values = {f"val/denoising_error/log_snr_{at:+d}": level / step * 2.0**at for at in (-1, 3)}
        told = {"n": VALIDATED, "split": "test"}
        record.append(step, {"val/denoising_error": level / step, **values}, told)


def level_of(family: str, lr: float, seed: int) -> float:
    """Denoising error of a run, times its step."""
    return {"ncsn": 2.0}.get(family, 4.0) / (1 + 100 * lr) + 0.1 * seed
