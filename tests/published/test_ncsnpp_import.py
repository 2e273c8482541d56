"""DDPM++ and NCSN++ of score_sde: the same function and the same noise after import."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from equality import CLOSE, images, randomised, relative_error
from launching import launch
from torch import Tensor, nn
from torch.utils import cpp_extension

from betasigma.commands.load import Loaded
from betasigma.denoiser import Denoiser
from betasigma.errors import UserError
from betasigma.published.score_sde_ncsnpp import ScoreSdeNCSNpp
from betasigma.runs.record import Record

SHAPES = [
    "vp/cifar10_ddpmpp",
    "vp/cifar10_ddpmpp_continuous",
    "vp/cifar10_ncsnpp",
    "vp/cifar10_ncsnpp_deep_continuous",
    "subvp/cifar10_ddpmpp_continuous",
    "ve/cifar10_ncsnpp",
    "ve/cifar10_ncsnpp_continuous",
    "ve/celeba_ncsnpp",
    "ve/celebahq_256_ncsnpp_continuous",
    "ve/ffhq_1024_ncsnpp_continuous",
]
"""One of each kind of published config: the others differ from one of them in numbers only."""

NARROW = 16
"""Width at full resolution, where it is not as published."""


@pytest.fixture
def score_sde(public_code: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Their ``models.ncsnpp``, whose resampling on the CPU is their PyTorch reference; the CUDA
    kernel is not compiled.
    """
    public_code("score_sde_pytorch")
    monkeypatch.setattr(cpp_extension, "load", lambda *_, **__: None)
    return import_module("models.ncsnpp")


def config_of(settings: dict[str, Any], side: int, attends_at: int) -> SimpleNamespace:
    """Their config for images of ``side`` pixels."""
    names = ("image_size", "centered", "sde", "continuous", "ch_mult", "attn_resolutions", "data")
    model = {key: value for key, value in settings.items() if key not in names}
    return SimpleNamespace(
        data=SimpleNamespace(image_size=side, centered=settings["centered"], num_channels=3),
        training=SimpleNamespace(continuous=settings["continuous"]),
        model=SimpleNamespace(
            **model,
            ch_mult=tuple(int(word) for word in settings["ch_mult"].split(",")),
            attn_resolutions=(attends_at,),
            resamp_with_conv=True,
            conditional=True,
            fir_kernel=[1, 3, 3, 1],
            nonlinearity="swish",
            init_scale=0.0,
            fourier_scale=16,
        ),
    )


def checkpoint(theirs: nn.Module, averages: list[Tensor]) -> dict[str, Any]:
    """As their code saves one: averages of what is trained, as a list."""
    return {
        "model": {f"module.{name}": value for name, value in theirs.state_dict().items()},
        "ema": {"decay": 0.999, "num_updates": 5, "shadow_params": averages},
        "optimizer": {"state": {}, "param_groups": []},
        "step": 950_000,
    }


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_equal(
    name: str, full: bool, tmp_path: Path, imported: Callable[..., Loaded], score_sde: ModuleType
) -> None:
    settings = {**ScoreSdeNCSNpp.defaults, **ScoreSdeNCSNpp.published[name]}
    if not full:
        settings |= {"nf": NARROW, "num_res_blocks": min(3, settings["num_res_blocks"])}
        if settings["image_size"] == 1024:
            settings["ch_mult"] = "1,2,2,4,4,4,4,4"
    levels = len(settings["ch_mult"].split(","))
    side = 2 ** (levels - 1)  # of one pixel at the coarsest
    attends_at = 16 * side // settings["image_size"]
    theirs = score_sde.NCSNpp(config_of(settings, side, attends_at))
    frequencies = {k: v.clone() for k, v in theirs.state_dict().items() if k.endswith("0.W")}
    trained = [p for p in randomised(theirs).parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in trained]
    randomised(theirs, seed=7)
    theirs.load_state_dict(frequencies, strict=False)
    file = tmp_path / name / "checkpoint_8.pth"
    file.parent.mkdir(parents=True)
    torch.save(checkpoint(theirs, averages), file)
    typed = {k: settings[k] for k in ("nf", "num_res_blocks", "ch_mult")}
    flags = {**typed, "image_size": side, "attn_resolutions": str(attends_at)}
    loaded = imported(file, flags=flags, data={"name": "image_folder"})
    denoiser = loaded.denoiser
    assert isinstance(denoiser, Denoiser)
    assert loaded.step == 950_000
    assert denoiser.value_range == ((-1.0, 1.0) if settings["centered"] else (0.0, 1.0))
    with torch.no_grad():
        for parameter, average in zip(trained, averages, strict=True):
            parameter.copy_(average)
    x = images(2, (3, side, side))
    for step in (1, 370, 1000):
        t = their_time(settings, step)
        time = our_time(denoiser, settings, t)
        assert_equal_outputs(denoiser, theirs, settings, x, t, time)
        assert_equal_scores(denoiser, theirs, settings, x, t, time)


def their_time(settings: dict[str, Any], step: int) -> Tensor:
    """Time of this thousandth of their curve, on one of their levels where those are all it has."""
    levels = settings["num_scales"]
    if settings["continuous"]:
        return torch.full((2,), step / 1000)
    return torch.full((2,), (round(step * levels / 1000) - 1) / (levels - 1))


def our_time(denoiser: Denoiser, settings: dict[str, Any], t: Tensor) -> Tensor:
    """Our time for theirs: the same for the VP SDE of every t, else that of the same σ or level."""
    time, levels = t.double(), denoiser.schedule.levels
    if not settings["continuous"]:
        return ((time * (levels - 1)).round() + 1) / levels
    if settings["sde"] != "vesde":
        return time
    ratio = settings["sigma_max"] / settings["sigma_min"]
    return denoiser.schedule.t_of_ratio(settings["sigma_min"] * ratio**time)


@torch.no_grad()
def assert_equal_outputs(
    denoiser: Denoiser,
    theirs: nn.Module,
    settings: dict[str, Any],
    x: Tensor,
    t: Tensor,
    time: Tensor,
) -> None:
    """Of the networks, told the same float32 number; ours is told that number."""
    sigmas = their_sde(settings).marginal_prob(x, t)[1]
    if settings["continuous"]:
        labels = sigmas if settings["sde"] == "vesde" else 999 * t
    else:
        place = 1 - t if settings["sde"] == "vesde" else t
        labels = (place * (settings["num_scales"] - 1)).round()
    told = labels.log() if settings["embedding_type"] == "fourier" else labels
    expected = theirs(x, labels)
    if settings["scale_by_sigma"]:
        expected = expected * sigmas[:, None, None, None]
    assert relative_error(denoiser.network(x, told), expected) < CLOSE
    kernel = denoiser.schedule.at(time)
    c_noise = denoiser.preconditioning(time, kernel.alpha, kernel.sigma).c_noise
    torch.testing.assert_close(c_noise.float(), told, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def assert_equal_scores(
    denoiser: Denoiser,
    theirs: nn.Module,
    settings: dict[str, Any],
    x: Tensor,
    t: Tensor,
    time: Tensor,
) -> None:
    """As far as float32 has the standard deviation that theirs divides by, 1 − e^{…} at small t."""
    utils, sde = import_module("models.utils"), their_sde(settings)
    expected = utils.get_score_fn(sde, theirs, train=False, continuous=settings["continuous"])(x, t)
    prediction = denoiser(x, time)
    sigma = prediction.sigma.float()[:, None, None, None]
    assert relative_error(sigma * prediction.score, sigma * expected) < 5e-4


def their_sde(settings: dict[str, Any]) -> Any:
    lib = import_module("sde_lib")
    if settings["sde"] == "vesde":
        return lib.VESDE(settings["sigma_min"], settings["sigma_max"], settings["num_scales"])
    kind = lib.VPSDE if settings["sde"] == "vpsde" else lib.subVPSDE
    return kind(settings["beta_min"], settings["beta_max"], settings["num_scales"])


@pytest.mark.slow
def test_its_likelihood_is_that_of_the_flow(here: Path, score_sde: ModuleType) -> None:
    """NCSN++ of random weights in continuous time, of images of 8 by 8 pixels."""
    name = "ve/cifar10_ncsnpp_continuous"
    settings = {**ScoreSdeNCSNpp.defaults, **ScoreSdeNCSNpp.published[name]}
    small = {"nf": NARROW, "num_res_blocks": 1}
    theirs = score_sde.NCSNpp(config_of({**settings, **small}, 8, 4))
    trained = [p for p in randomised(theirs).parameters() if p.requires_grad]
    torch.save(checkpoint(theirs, [p.detach() for p in trained]), "checkpoint_8.pth")
    np.save("own.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    flags = f"flags='--nf {NARROW} --num_res_blocks 1 --image_size 8 --attn_resolutions 4'"
    known = (f"published={name}", "data.name=array", "data.root=own.npy")
    made = launch("import", "from=checkpoint_8.pth", "to=run", flags, *known)
    assert made.status == 0, made.err
    flow = ("likelihood=flow", "likelihood.n=2", "likelihood.tolerance=0.01")
    measured = launch("evaluate", "run=run", "evaluation=none", "error_curve=0", *flow)
    assert measured.status == 0, measured.err
    values = Record(here / "run" / "metrics.csv").curve("eval/bits_per_dim/flow/total_test")[1]
    assert len(values) == 1
    assert 0 < values[0] < 100


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sde": "subvpsde"}, "only vpsde or vesde, with sde=subvpsde and continuous=False"),
        ({"skip_rescale": False}, "flags.skip_rescale=False"),
        ({"progressive": "residual"}, "only none or output_skip"),
        ({"embedding_type": "fourier"}, "only positional, with sde=vpsde and continuous=False"),
        ({"attn_resolutions": "7"}, r"none of the resolutions with attention, \[7\], occurs"),
        ({"ch_mult": "1,two"}, "must be integers"),
        ({"nf": 32}, "has no all_modules.1.weight, which its settings ask for"),
    ],
)
def test_settings_that_are_not_read(
    flags: dict[str, Any], message: str, tmp_path: Path, imported: Callable[..., Loaded]
) -> None:
    names = ("all_modules.0.weight", "all_modules.3.Conv_2.weight")
    model = nn.ParameterDict()
    content = checkpoint(model, [torch.zeros(4, 4)] * 2)
    content["model"] = {f"module.{name}": torch.zeros(4, 4) for name in names}
    file = tmp_path / "checkpoint_8.pth"
    torch.save(content, file)
    with pytest.raises(UserError, match=message):
        imported(file, flags=flags)
