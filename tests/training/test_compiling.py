"""When ``hardware.compile=auto`` compiles. That it does on a GPU is tested in tests/gpu."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from launching import ROOT
from torch.nn import functional as F

from betasigma.commands.checks import check_run
from betasigma.denoiser import Denoiser
from betasigma.display import Display
from betasigma.networks.mlp import MLP
from betasigma.networks.unet import GroupNorm
from betasigma.options import plugins
from betasigma.preconditioning import Preconditioning
from betasigma.samplers import DDIM, AnnealedLangevin, Sampler
from betasigma.schedules import geometric
from betasigma.training import compiling
from betasigma.training.compiling import can_be_compiled, is_left_open


@pytest.mark.parametrize(
    ("words", "open_choice", "possible"),
    [
        ((), True, True),
        (("hardware.compile=false",), False, True),
        (("hardware.compile=cuda_graphs",), False, True),
        (("hardware.deterministic=true",), False, True),
        (("data=mixture", "objective=sliced"), True, False),
        (("data=mixture", "network=mlp_energy"), True, False),
    ],
)
def test_the_choice_is_open_where_nothing_speaks_against_compiling(
    words: tuple[str, ...], open_choice: bool, possible: bool
) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        content = check_run(compose("train", list(words))).content
    assert is_left_open(content["hardware"]) == open_choice
    assert can_be_compiled(content) == possible


def test_of_an_objective_of_one_s_own_it_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_loss.py").write_text(
        "from betasigma.objectives import Denoising\nclass Own(Denoising): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins.allow(["own_loss"])
    network = {"_target_": "betasigma.networks.unet.UNet"}
    assert not can_be_compiled({"objective": {"_target_": "own_loss.Own"}, "network": network})


@pytest.mark.parametrize(
    ("devices", "left", "expected", "compiled"),
    [
        (1, 121, "not compiling the network: uncompiled, 0:02:01 of training would be left", None),
        (1, 123, "compiling the network: uncompiled, 0:02:03 of training would be left", True),
        (2, 123, "compiling the network, without CUDA graphs, which take one device", False),
    ],
)
def test_a_training_says_what_was_decided(
    devices: int,
    left: float,
    expected: str,
    compiled: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a GPU whose steps take a second."""
    made: list[bool] = []
    times = iter((0.0, float(compiling.MEASURED)))
    monkeypatch.setattr(compiling, "_now", lambda device: next(times))
    monkeypatch.setattr(compiling, "compile_in_place", lambda network, graphs: made.append(graphs))
    steps = compiling.SETTLING + compiling.MEASURED
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(max_steps=steps + left, world_size=devices, strategy=strategy)
    module = SimpleNamespace(
        device=torch.device("cuda"), denoiser=SimpleNamespace(network=torch.nn.Identity())
    )
    callback = compiling.CompileTraining(Display(), cuda_graphs=True)
    for step in range(steps + 2):
        callback.on_step(trainer, module, step)
    told = capsys.readouterr().out.replace("\n", " ")
    assert told.startswith(expected)
    assert told.count("network") == 1
    assert made == ([] if compiled is None else [compiled])


@pytest.mark.parametrize(
    ("sampler", "guidance", "each"),
    [
        (DDIM(steps=7), 1, 7),
        (AnnealedLangevin(inner_steps=100), 1, 1001),  # the last one denoises
        (DDIM(steps=7), 3, 14),
    ],
    ids=["ddim", "annealed_langevin", "guidance"],
)
@pytest.mark.parametrize("share", [0.99, 1.01])
def test_sampling_is_compiled_where_its_evaluations_repay(
    sampler: Sampler, guidance: float, each: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: 5 samples in batches of 2 are three times the evaluations of one."""
    seconds = share * compiling.REPAID_AFTER / (3 * each)
    made: list[bool] = []
    monkeypatch.setattr(Denoiser, "device", torch.device("cuda"))
    monkeypatch.setattr(torch, "randn", lambda *shape, device: torch.zeros(shape))
    monkeypatch.setattr(compiling, "_seconds_of", lambda evaluate, device: seconds)
    monkeypatch.setattr(
        compiling, "compile_in_place", lambda network, cuda_graphs: made.append(cuda_graphs)
    )
    denoiser = Denoiser(MLP(2), geometric(10), Preconditioning("score"), sample_shape=(2,))
    hardware = {"compile": "auto", "deterministic": False, "strategy": "auto"}
    compiling.compile_for_sampling(denoiser, hardware, sampler, 5, 2, Display(), guidance)
    assert made == ([False] if share > 1 else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_fusible_normalisation_is_group_normalisation(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    norm = GroupNorm(4, 24)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 3 + torch.randn(2, 24, 5, 6).to(dtype).contiguous(memory_format=memory_format)
    found = norm._fusible(x)
    expected = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=memory_format)
