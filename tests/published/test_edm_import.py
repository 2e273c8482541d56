"""EDM: its pickles are refused, converted where their code is, and then the same denoiser."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import CLOSE, images, randomised, relative_error
from launching import launch
from torch import Tensor, nn

from betasigma.commands.convert_edm import convert_edm
from betasigma.commands.load import Loaded
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.networks import layers

DDPMPP = {
    "embedding_type": "positional",
    "encoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
ADM = {
    "img_resolution": 16,
    "channel_mult": [1, 2, 3],
    "attn_resolutions": [8, 4],
    "model_channels": 64,
    "model_type": "DhariwalUNet",
    "label_dim": 10,
}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
CIFAR10 = {"img_resolution": 16, "channel_mult": [2, 2, 2], "attn_resolutions": [8]}
"""The published widths of CIFAR-10 and number of resolutions, of images half as large."""

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "edm-cifar10-32x32-cond-vp": (
        "EDMPrecond",
        {**CIFAR10, **DDPMPP, "augment_dim": 9, "label_dim": 10},
    ),
    "edm-cifar10-32x32-uncond-vp": ("EDMPrecond", {**CIFAR10, **DDPMPP, "augment_dim": 9}),
    "edm-cifar10-32x32-cond-ve": (
        "EDMPrecond",
        {**CIFAR10, **NCSNPP, "augment_dim": 9, "label_dim": 10},
    ),
    "edm-cifar10-32x32-uncond-ve": ("EDMPrecond", {**CIFAR10, **NCSNPP, "augment_dim": 9}),
    "baseline-cifar10-32x32-uncond-vp": (
        "VPPrecond",
        {**CIFAR10, **DDPMPP, "channel_mult": [1, 2, 2, 2]},
    ),
    "baseline-cifar10-32x32-uncond-ve": (
        "VEPrecond",
        {**CIFAR10, **NCSNPP, "channel_mult": [1, 2, 2, 2]},
    ),
    "edm-imagenet-64x64-cond-adm": (
        "EDMPrecond",
        ADM,
    ),
    "baseline-imagenet-64x64-cond-adm": (
        "iDDPMPrecond",
        ADM,
    ),
    "edm-ffhq-64x64-uncond-ve": (
        "EDMPrecond",
        {
            "img_resolution": 16,
            "channel_mult": [1, 2, 2, 2],
            "attn_resolutions": [4],
            **NCSNPP,
            "augment_dim": 9,
        },
    ),
}


def pickled(kind: str, settings: dict[str, Any], file: Path, width: int = 8) -> nn.Module:
    """A network of theirs with random weights, in a pickle as they publish them."""
    precond = getattr(import_module("training.networks"), kind)
    song = {"model_type": "SongUNet", "model_channels": width, "num_blocks": 2}
    net = precond(img_channels=3, **{**song, **settings})
    frequencies = {k: v for k, v in net.state_dict().items() if k.endswith("freqs")}
    randomised(net).load_state_dict(frequencies, strict=False)
    with file.open("wb") as stream:
        pickle.dump({"ema": net, "augment_pipe": None}, stream)
    return net


@pytest.mark.parametrize("width", [8, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_equal(
    name: str,
    width: int,
    tmp_path: Path,
    imported: Callable[..., Loaded],
    public_code: Callable[[str], Path],
) -> None:
    code = public_code("edm")
    kind, settings = SHAPES[name]
    theirs = pickled(kind, settings, tmp_path / f"{name}.pkl", width)
    file = convert_edm(tmp_path / f"{name}.pkl", code, tmp_path / "plain")
    loaded = imported(file, data={"name": "image_folder"})
    denoiser = loaded.denoiser
    assert isinstance(denoiser, Denoiser)
    x = images(3, (3, 16, 16))
    classes = settings.get("label_dim", 0)
    labels = [None, torch.tensor([0, 3, classes - 1])] if classes else [None]
    for sigma in (0.05, 1.0, 20.0):
        for y in labels:
            assert_equal(denoiser, theirs, sigma * x, sigma, y)


@torch.no_grad()
def assert_equal(
    denoiser: Denoiser, theirs: nn.Module, x: Tensor, sigma: float, y: Tensor | None
) -> None:
    """F of the networks, told the same float32 number, and D(x; σ) of images in [−1, 1], for theirs
    at σ and for ours at its time, in its units.

    What float32 leaves open: VPPrecond finds its number from σ in float32, iDDPMPrecond (which
    knows its levels only) each level from the one before, and D is as near as that.
    """
    kind = type(theirs).__name__
    if kind == "iDDPMPrecond":
        nearest = theirs.round_sigma(sigma).item()
        x, sigma = x * (nearest / sigma), nearest
    hot = None if y is None else nn.functional.one_hot(y, theirs.label_dim).float()
    told: list[Tensor] = []
    theirs.model.register_forward_hook(lambda _, inputs, output: told.extend([*inputs, output]))
    expected = theirs(x, torch.tensor(sigma), hot)
    seen, c_noise, output = told
    low, high = denoiser.value_range
    half, middle = (high - low) / 2, (high + low) / 2  # of [−1, 1]
    told_ours = c_noise.expand(len(x))
    found = denoiser.network(half * seen + middle, told_ours, y)
    assert relative_error(found, output) < CLOSE
    exact = 2e-4 if kind in ("VPPrecond", "iDDPMPrecond") else CLOSE
    assert relative_error(denoised(denoiser, x, sigma, y), expected) < exact


def denoised(denoiser: Denoiser, x: Tensor, sigma: float, y: Tensor | None = None) -> Tensor:
    """D(x; σ) of images in [−1, 1], by ours at its time and in its units."""
    low, high = denoiser.value_range
    half, middle = (high - low) / 2, (high + low) / 2
    t = denoiser.schedule.t_of_ratio(sigma * half)
    alpha = denoiser.schedule.alpha(t).item()
    return (denoiser(alpha * (half * x + middle), t, y).x0 - middle) / half


class InDouble:
    """``torch`` for a module that computes in float32 whatever it is given: in float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize(
    "name", ["baseline-cifar10-32x32-uncond-vp", "baseline-imagenet-64x64-cond-adm"]
)
@torch.no_grad()
def test_what_float32_leaves_open_is_rounding(
    name: str,
    tmp_path: Path,
    converted: Callable[..., Denoiser],
    public_code: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With VPPrecond's number of σ and iDDPMPrecond's table of σ in float64, D is the same to 1e-9.

    In float32 ours, which finds both in float64 in any case, is as near as float32 can be: up to a
    hundred times nearer than VPPrecond's, which subtracts two numbers that are almost equal.
    """
    code = public_code("edm")
    kind, settings = SHAPES[name]
    theirs = pickled(kind, settings, tmp_path / f"{name}.pkl")
    file = convert_edm(tmp_path / f"{name}.pkl", code, tmp_path / "plain")
    ours = converted(file, data={"name": "image_folder"})
    networks = import_module("training.networks")
    double = copy.deepcopy(ours).double()
    torch.set_default_dtype(torch.float64)
    try:
        exact = getattr(networks, kind)(*theirs.init_args, **theirs.init_kwargs).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    exact.model.load_state_dict(theirs.model.state_dict())
    x = images(2, (3, 16, 16)).double()
    for sigma in (0.05, 1.0, 20.0):
        with monkeypatch.context() as patched:
            for module in (networks, layers):
                patched.setattr(module, "torch", InDouble())
            if kind == "iDDPMPrecond":  # which knows its levels only
                sigma = exact.round_sigma(torch.tensor(sigma).double()).item()
            truth = exact(sigma * x, torch.tensor(sigma, dtype=torch.float64))
            assert relative_error(denoised(double, sigma * x, sigma), truth) < 1e-9
        near = relative_error(denoised(ours, (sigma * x).float(), sigma).double(), truth)
        far = relative_error(theirs(sigma * x, torch.tensor(sigma)).double(), truth)
        assert near < CLOSE
        assert kind != "VPPrecond" or near < far


def test_a_pickle_is_refused_and_the_sentence_converts_it(
    tmp_path: Path, public_code: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = public_code("edm")
    monkeypatch.chdir(tmp_path)
    name = "edm-cifar10-32x32-uncond-vp"
    kind, settings = SHAPES[name]
    pickled(kind, {**settings, "img_resolution": 32, "attn_resolutions": [16]}, Path(f"{name}.pkl"))
    refused = launch("import", f"from={name}.pkl")
    assert refused.status == 1
    assert f"convert=edm from={name}.pkl code=EDM to=FOLDER" in refused.err
    assert launch("sample", f"run={name}.pkl").err == refused.err.replace(
        "from=", "run=", 1
    ).replace("which from=", "which run=")
    made = launch("import", "convert=edm", f"from={name}.pkl", f"code={code}", "to=plain")
    assert made.status == 0, made.err
    read = launch("import", f"from=plain/{name}.pt", "to=model")
    assert read.status == 0, read.err
    assert f"edm, {name}" in read.out
    assert "augmentation labels" in read.out
    drawn = launch("sample", "run=model", "n=1", "sampler=heun", "sampler.steps=2")
    assert drawn.status == 0, drawn.err


def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path) -> None:
    """By the name of the function alone, without EDM's code."""
    file = tmp_path / "net.pkl"
    file.write_bytes(b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n(tR.")
    refused = launch("import", f"from={file}")
    assert refused.status == 1
    assert "carries code and would run it" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert=edm",), r"convert=edm needs code=FOLDER"),
        (("code=edm",), r"code=edm has no effect without convert=edm"),
        (("convert=edm", "code=nowhere", "to=x"), r"code=nowhere does not exist"),
        (("convert=edm", "code=.", "to=x", "format=edm"), r"format=edm has no effect with convert"),
        (("convert=edm", "code=.", "to=x", "data.root=y"), r"data.root=y has no effect with conv"),
    ],
)
def test_a_conversion_needs_code_and_place(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.pkl").write_bytes(b"N.")
    refused = launch("import", "from=net.pkl", *words)
    assert refused.status == 1
    assert message in refused.err


def test_what_is_no_network_of_edm(tmp_path: Path) -> None:
    for content, message in (({"ema": 3}, "holds no network of EDM"), (None, "holds no network")):
        file = tmp_path / "net.pkl"
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=message):
            convert_edm(file, tmp_path, tmp_path / "plain")
    file.write_bytes(b"cno_such_module\nf\n.")
    with pytest.raises(UserError, match="cannot be read with code="):
        convert_edm(file, tmp_path, tmp_path / "plain")


NETWORK = {
    "class": "SongUNet",
    "img_resolution": 16,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "channel_mult_emb": 4,
    "dropout": 0.1,
    "label_dim": 0,
    "decoder_type": "standard",
    **DDPMPP,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "DiT"}, "has class=DiT, which must be 'SongUNet' or 'DhariwalUNet'$"),
        ({"resample_filter": [1, 2, 1]}, r"resample_filter=\(1, 2, 1\) is none of \(1, 1\), "),
        ({"num_blocks": "many"}, "has num_blocks=many, which must be a valid integer$"),
        ({"model_channels": 0}, "has model_channels=0, which must be above 0$"),
        (
            {"class": "DhariwalUNet", "channel_mult": []},
            r"has channel_mult=\[\], which must have at least 1 item",
        ),
        ({"channel_mult": [1, 2.5]}, r"has channel_mult\[1\]=2\.5, which must be a valid integer$"),
        ({"channel_mult_noise": 2}, "has channel_mult_noise=2, which must be 1$"),
        ({"attn_resolutions": [3]}, "none of the resolutions with attention"),
        ({}, "has no map_layer0.weight"),
    ],
)
def test_settings_that_are_not_read(
    changes: dict[str, Any], message: str, tmp_path: Path, imported: Callable[..., Loaded]
) -> None:
    content = {
        "format": "edm",
        "preconditioning": {"class": "EDMPrecond", "sigma_data": 0.5},
        "network": {**NETWORK, **changes},
        "weights": {"out": torch.zeros(1)},
    }
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UserError, match=message):
        imported(tmp_path / "net.pt")
