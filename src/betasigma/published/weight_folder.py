"""Where the weights of a published model are: a file, or a folder with configs beside them."""

from __future__ import annotations

from pathlib import Path

from betasigma.errors import UserError
from betasigma.published.weight_file import WeightFile, read_json, read_weights
from betasigma.runs.header import WEIGHTS

CONFIGS = ("config", "scheduler_config")
"""JSON files that a folder may have beside its weights."""


USUAL = "diffusion_pytorch_model"
"""Name of diffusers' files of weights; ``diffusion_pytorch_model.fp16``, say, is a variant."""


def open_weights(path: Path, key: str = "from") -> WeightFile:
    """Open a file of weights, or a folder that has one.

    Of a folder, ``unet`` and ``scheduler`` are looked at too: diffusers' pipelines keep the parts
    of a model there.

    Raises:
        UserError: if there is none, or more than one of the same ending, or it cannot be read.
    """
    if not path.exists():
        raise UserError(f"{key}={path} does not exist; give a file or a folder of weights")
    if path.is_file():
        return WeightFile(path, read_weights(path, key), path, key=key)
    places = [place for place in (path / "unet", path, path / "scheduler") if place.is_dir()]
    weights = _weights_in(places, path, key)
    settings = {}
    for name in CONFIGS:
        beside = [place / f"{name}.json" for place in places]
        found = next((file for file in beside if file.is_file()), None)
        if found is not None:
            settings[name] = read_json(found, key)
    return WeightFile(path, read_weights(weights, key), weights, settings, key)


def _weights_in(places: list[Path], path: Path, key: str) -> Path:
    for place in places:
        for ending in WEIGHTS:
            files = sorted(place.glob(f"*{ending}"))
            usual = place / f"{USUAL}{ending}"
            if usual in files:  # beside others in half precision, say
                return usual
            if len(files) > 1:
                raise UserError(
                    f"{key}={path} has several files of weights ({', '.join(f.name for f in files)}"
                    f"): give the path of one"
                )
            if files:
                return files[0]
    raise UserError(
        f"{key}={path} has no weights ({', '.join(WEIGHTS)}); give a file of weights, or a folder "
        f"with one"
    )
