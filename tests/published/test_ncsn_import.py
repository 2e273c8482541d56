"""NCSN and NCSNv2: the same score at every noise level after import, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from equality import CLOSE, images, randomised, relative_error
from launching import launch
from torch import Tensor, nn

from betasigma.commands.load import Loaded
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.networks.refinenet import RefineNet
from betasigma.runs.record import Record
from betasigma.samplers import AnnealedLangevin

NCSN_SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mnist": ("ncsn", "models.cond_refinenet_dilated.CondRefineNetDilated", {"size": 28}),
    "cifar10": ("ncsn", "models.cond_refinenet_dilated.CondRefineNetDilated", {"size": 32}),
    "celeba": ("ncsnv2", "models.ncsn.NCSN", {"size": 32}),
}
NCSNV2_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "cifar10": ("NCSNv2", {"size": 32, "levels": 232, "sigma_begin": 50}),
    "celeba": ("NCSNv2", {"size": 64, "levels": 500, "sigma_begin": 90}),
    "church": ("NCSNv2Deeper", {"size": 64, "levels": 788, "sigma_begin": 140}),
    "bedroom": ("NCSNv2Deeper", {"size": 128, "levels": 1086, "sigma_begin": 190}),
    "tower": ("NCSNv2Deeper", {"size": 128, "levels": 1086, "sigma_begin": 190}),
    "ffhq": ("NCSNv2Deepest", {"size": 256, "levels": 2311, "sigma_begin": 348}),
}
"""Networks by the names of their configs."""


widths = pytest.mark.parametrize("width", [8, pytest.param(128, marks=pytest.mark.slow)])


def config_of(
    size: int, width: int, channels: int = 3, levels: int = 10, sigma_begin: float = 1
) -> SimpleNamespace:
    """A config as both codes read it."""
    return SimpleNamespace(
        device="cpu",
        data=SimpleNamespace(
            image_size=size, channels=channels, logit_transform=False, rescaled=False
        ),
        model=SimpleNamespace(
            ngf=width,
            num_classes=levels,
            sigma_begin=sigma_begin,
            sigma_end=0.01,
            sigma_dist="geometric",
            normalization="InstanceNorm++",
            nonlinearity="elu",
            spec_norm=False,
        ),
    )


def made(path: str, config: SimpleNamespace) -> nn.Module:
    """Their network with random weights, an InstanceNorm++ near to one as it starts."""
    module, _, name = path.rpartition(".")
    net = randomised(getattr(import_module(module), name)(config))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("embed.weight", "alpha", "gamma", "beta")):
                parameter.add_(0.0 if name.endswith("beta") else 1.0)
    return net


def prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in weights.items()}


def assert_equal_scores(denoiser: Denoiser, theirs: nn.Module, x: Tensor) -> None:
    """At the noisiest level, number 0 for them, at one between and at the last."""
    levels = denoiser.schedule.levels
    for number in (0, levels // 3, levels - 1):
        with torch.no_grad():
            expected = theirs(x, torch.full((len(x),), number))
            found = denoiser(x, 1 - number / levels).score
        assert relative_error(found, expected) < CLOSE


@widths
@pytest.mark.parametrize("name", NCSN_SHAPES)
def test_ncsn_is_equal(
    name: str,
    width: int,
    tmp_path: Path,
    imported: Callable[..., Loaded],
    public_code: Callable[[str], Path],
) -> None:
    repository, path, shape = NCSN_SHAPES[name]
    public_code(repository)
    channels = 1 if name == "mnist" else 3
    theirs = made(path, config_of(**shape, width=width, channels=channels))
    (tmp_path / name).mkdir()
    file = tmp_path / name / "checkpoint_200000.pth"
    torch.save([prefixed(theirs.state_dict()), {"state": {}, "param_groups": []}], file)
    loaded = imported(file)
    denoiser, sampler = loaded.denoiser, loaded.sampler
    assert isinstance(denoiser, Denoiser)
    assert loaded.step == 200_000
    assert denoiser.value_range == (0.0, 1.0)
    assert isinstance(sampler, AnnealedLangevin)
    assert (sampler.inner_steps, sampler.start) == (100, "uniform")
    assert sampler.step_size == pytest.approx(0.2)
    assert_equal_scores(denoiser, theirs, images(2, (channels, shape["size"], shape["size"])))


@widths
@pytest.mark.parametrize("name", NCSNV2_SHAPES)
def test_ncsnv2_is_equal(
    name: str,
    width: int,
    tmp_path: Path,
    imported: Callable[..., Loaded],
    public_code: Callable[[str], Path],
) -> None:
    public_code("ncsnv2")
    network, shape = NCSNV2_SHAPES[name]
    theirs = made(f"models.ncsnv2.{network}", config_of(**shape, width=width))
    averages = {k: v.clone() for k, v in theirs.named_parameters()}
    other = {k: v + 1 for k, v in theirs.state_dict().items() if k != "sigmas"}
    raw = prefixed({**other, "sigmas": theirs.get_buffer("sigmas")})
    (tmp_path / name).mkdir()
    file = tmp_path / name / "checkpoint_300000.pth"
    torch.save([raw, {"state": {}, "param_groups": []}, 7, 300_000, averages], file)
    loaded = imported(file)
    denoiser = loaded.denoiser
    assert isinstance(denoiser, Denoiser)
    assert loaded.step == 300_000
    sigmas = denoiser.schedule.sigma(denoiser.schedule.times()).flip(0)
    torch.testing.assert_close(sigmas.float(), theirs.get_buffer("sigmas"), rtol=1e-5, atol=0)
    side = 32  # its layers do not know the size of the images
    x = images(2, (3, side, side))
    assert_equal_scores(denoiser, theirs, x)


def saved(net: RefineNet, file: Path, sigmas: Tensor | None = None, **changes: Tensor) -> Path:
    """The network as NCSNv2's code saves one, without that code."""
    names = {"enter": "begin_conv", "leave": "end_conv", "norm": "normalizer"}
    weights: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        place, kind = name.rsplit(".", 1)
        head, *rest = place.split(".")
        if head == "down":
            stage, block, layer = rest
            layer = layer.replace("norm", "normalize")
            pooled = stage == "1" and block == "0" and layer in ("conv2", "shortcut")
            theirs = f"res{int(stage) + 1}.{block}.{layer}{'.conv' if pooled else ''}"
        elif head == "refine":
            stage, part, *inner = rest
            refined = f"refine{int(stage) + 1}"
            number = int(inner[-1])
            if part in ("adapt", "out"):
                convs = f"adapt_convs.{inner[0]}" if part == "adapt" else "output_convs"
                theirs = f"{refined}.{convs}.{number // 2 + 1}_{number % 2 + 1}_conv"
            else:
                theirs = f"{refined}.{'msf' if part == 'fuse' else 'crp'}.convs.{number}"
        else:
            theirs = names[place]
        if kind == "rows":
            for part, values in zip(("gamma", "alpha", "beta"), value[0].chunk(3), strict=True):
                weights[f"{theirs}.{part}"] = values
        else:
            weights[f"{theirs}.{kind}"] = value
    default = torch.logspace(0, -2, 10)
    weights = {**weights, "sigmas": default if sigmas is None else sigmas, **changes}
    torch.save([prefixed(weights), {"state": {}}, 0, 5], file)
    return file


@pytest.fixture
def net() -> RefineNet:
    torch.manual_seed(0)
    return RefineNet(3, 32, channels=4, pooling="max", conditional=False)


def test_a_network_of_ours_in_their_file(
    net: RefineNet, tmp_path: Path, imported: Callable[..., Loaded]
) -> None:
    """Also where their code is not at hand: what was saved is what is read."""
    loaded = imported(saved(net, tmp_path / "checkpoint.pth"), flags={"image_size": 32})
    found = loaded.denoiser.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(found[f"network.{name}"], value), name
    assert loaded.step == 5


@pytest.mark.slow
def test_it_is_edited_and_its_likelihood_measured(here: Path) -> None:
    """By every edit, and along the flow, as a run of one's own."""
    torch.manual_seed(0)
    net = RefineNet(3, 16, channels=4, pooling="max", conditional=False)
    saved(net, here / "checkpoint.pth")
    np.save("own.npy", np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    data = ("data.name=array", "data.root=own.npy")
    made = launch("import", "from=checkpoint.pth", "to=run", "flags={image_size: 16}", *data)
    assert made.status == 0, made.err
    loose = ("edit.tolerance=0.1",)
    for words in (
        ("edit=invert", "indices=[0]", *loose),
        ("edit=interpolate", "images=own.npy", "indices=[0,1]", "edit.frames=2", *loose),
        ("edit=inpaint", "indices=[0]", "n=1"),
        ("edit=colourise", "indices=[0]", "n=1", "sampler=ancestral"),
        ("edit=vary", "indices=[0]", "n=1", "sampler=ddim"),
    ):
        edited = launch("edit", "run=run", *words)
        assert edited.status == 0, edited.err
        assert ".png, a row: " in edited.out
    few = ("error_curve=0", "evaluation.metrics=[]")
    flow = ("likelihood=flow", "likelihood.n=2", "likelihood.tolerance=0.1")
    measured = launch("evaluate", "run=run", *few, *flow)
    assert measured.status == 0, measured.err
    values = Record(here / "run" / "metrics.csv").curve("eval/bits_per_dim/flow/total_test")[1]
    assert len(values) == 1
    assert 0 < values[0] < 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": torch.linspace(1, 0.1, 10)}, "no falling geometric ladder"),
        ({"sigmas": torch.logspace(-2, 0, 10)}, "no falling geometric ladder"),
        ({"sigmas": torch.zeros(10)}, "no falling geometric ladder"),
        ({"sigmas": torch.zeros(2, 2)}, "no sigmas, its noise levels"),
        ({"begin_conv.weight": torch.zeros(3, 3, 3, 3)}, "multiples of the first convolution's 3"),
        ({"res6.0.conv1.weight": torch.zeros(2)}, r"res6.0.conv1.weight has shape \(2,\) in the"),
        ({"end_conv.bias": torch.full((3,), torch.nan)}, "not finite: leave.bias"),
        ({"res1.0.normalize1.alpha": torch.zeros(3, 3)}, "settings that ncsnv2 does not write"),
        ({"end_conv.bias": torch.zeros(4)}, r"leave.bias has shape \(4,\) in the file"),
        ({"end_conv.bias": torch.zeros(3, dtype=torch.int64)}, "of torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Tensor],
    message: str,
    net: RefineNet,
    tmp_path: Path,
    imported: Callable[..., Loaded],
) -> None:
    file = saved(net, tmp_path / "checkpoint.pth", **changes)
    with pytest.raises(UserError, match=message):
        imported(file, flags={"image_size": 32})


def test_averages_of_other_weights_are_refused(
    net: RefineNet, tmp_path: Path, imported: Callable[..., Loaded]
) -> None:
    file = saved(net, tmp_path / "checkpoint.pth")
    content = torch.load(file, weights_only=True)
    torch.save([*content, {"begin_conv.weight": torch.zeros(1)}], file)
    with pytest.raises(UserError, match="averages of other weights"):
        imported(file, flags={"image_size": 32})
