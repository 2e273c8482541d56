"""Choose the features that metrics are computed on, before anything heavy is imported.

A Fréchet distance depends on the feature space: distances on Inception's pool3 (FID) and on other
features must not stand in one table. So the choice is made once, before a sweep is submitted, from
what is on this machine, and every job gets the result. Otherwise weights that appear in the cache
during a sweep would split it in two. Nothing is downloaded unless the user asks for it.

This module does not import PyTorch: the config check uses it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from betasigma.errors import UserError
from betasigma.options.evaluation import (
    DINOV2_FILE,
    EXTRACTORS,
    INCEPTION_FILES,
    Entry,
    EvaluationOptions,
    class_node,
)


@dataclass(frozen=True)
class Choice:
    """The chosen features: what ``betasigma.evaluation.features.build`` needs.

    Attributes:
        extractor: a name of ``EXTRACTORS``, or a class of the user.
        weights: absolute path of the weights of Inception or DINOv2; ``None`` for other extractors,
            or before the download.
        download: whether to download the weights when the extractor is built.
        note: one line for the user if the choice is not the one that papers report.
    """

    extractor: Entry
    weights: str | None = None
    download: bool = False
    note: str | None = None


def choose(
    extractor: Entry = EvaluationOptions.DEFAULTS["extractor"],
    inception_weights: str | os.PathLike[str] | None = None,
    download: bool = False,
    sample_shape: Sequence[int] = (3, 32, 32),
    dinov2_weights: str | os.PathLike[str] | None = None,
) -> Choice:
    """Choose the features that metrics are computed on.

    Args:
        extractor: ``auto`` takes Inception if its weights are given, cached or may be downloaded,
            otherwise EfficientNet-Lite0, whose weights are installed with this package.
        inception_weights, dinov2_weights: paths of the weights files.
        download: whether weights may be downloaded.
        sample_shape: shape of one example. For points (``(2,)``) the coordinates are the features.

    Raises:
        UserError: if the extractor is unknown or does not fit the data, the weights file does
            not exist, or Inception is demanded and there are no weights.
    """
    if class_node(extractor) is not None:
        return Choice(extractor)
    if not isinstance(extractor, str) or extractor not in ("auto", *EXTRACTORS):
        raise UserError(
            f"evaluation.extractor={extractor} is unknown; choose from auto, "
            f"{', '.join(EXTRACTORS)}, or name a class (mylab.features.Clip)"
        )
    if len(sample_shape) != 3:
        return _of_points(extractor, sample_shape)
    if sample_shape[0] not in SEEN and extractor != "identity":
        return _of_other_channels(extractor, sample_shape)
    if extractor in ("identity", "efficientnet_lite0"):
        return Choice(extractor)
    name, path, files = "inception", inception_weights, INCEPTION_FILES
    if extractor == "dinov2":
        name, path, files = "dinov2", dinov2_weights, (DINOV2_FILE,)
    weights = _given(path, f"{name}_weights", files[0])
    weights = weights or next(filter(None, map(_cached, files)), None)
    if weights is not None or download:
        return Choice(name, weights, download=weights is None)
    if extractor == "auto":
        return Choice("efficientnet_lite0", note=_NOTE)
    raise UserError(
        f"evaluation.extractor={name} finds no {files[0]} in {checkpoint_dir()}; give "
        f"evaluation.{name}_weights=PATH or evaluation.download=true"
    )


_NOTE = (
    "samples are measured by EfficientNet-Lite0 features (fd_efficientnet_lite0); FID needs "
    "Inception's weights: evaluation.inception_weights=PATH or evaluation.download=true"
)


def checkpoint_dir() -> Path:
    """Where torch.hub keeps the files it has downloaded (``TORCH_HOME`` and ``XDG_CACHE_HOME`` are
    respected)."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def _cached(name: str) -> str | None:
    """Absolute path of a file in torch.hub's directory; ``None`` where it is not there."""
    file = checkpoint_dir() / name
    return str(file.absolute()) if file.is_file() else None


def _given(path: str | os.PathLike[str] | None, key: str, wanted: str) -> str | None:
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"evaluation.{key}={path} does not exist; give the path of {wanted}")
    return str(file.absolute())


def _of_other_channels(extractor: str, sample_shape: Sequence[int]) -> Choice:
    numbers = math.prod(sample_shape)
    if extractor == "auto" and numbers <= MOST_NUMBERS:
        return Choice("identity", note=f"{_CHANNELS.format(sample_shape[0])} (fd_identity)")
    raise UserError(
        f"evaluation.extractor={extractor} does not fit images of {sample_shape[0]} channels: "
        f"networks of features see 1 or 3, and identity would compare {numbers} numbers an image; "
        f"name a class of your own, or evaluation=none"
    )


SEEN = (1, 3)
"""Channels that the networks of features can be shown."""

MOST_NUMBERS = 4096
"""Longest features whose covariance is taken unasked."""

_CHANNELS = "images of {} channels fit no network of features: metrics compare their values"


def _of_points(extractor: str, sample_shape: Sequence[int]) -> Choice:
    if extractor != "auto" and EXTRACTORS[extractor].images:
        raise UserError(
            f"evaluation.extractor={extractor} reads images, and this data has shape "
            f"{tuple(sample_shape)}; use evaluation.extractor=auto or identity"
        )
    return Choice("identity")
