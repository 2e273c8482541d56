"""What must be true on a GPU too; skipped where there is none."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import ROOT, TINY
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import betasigma
from betasigma.denoiser import Denoiser
from betasigma.networks.compiled import compile_in_place
from betasigma.networks.unet import UNet
from betasigma.oracles import GaussianMixture
from betasigma.preconditioning import Preconditioning
from betasigma.randomness import Stream
from betasigma.samplers import DDIM, Ancestral, AnnealedLangevin, Heun, Sampler
from betasigma.schedules import linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]

GPU = (*TINY, "hardware=gpu")
SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Comparisons with the CPU are of float32, not of TensorFloat-32."""
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.reset()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


def network() -> UNet:
    torch.manual_seed(0)
    made = UNet(3, 16, channels=32, multipliers=(1, 2), blocks=1, attention=(8,), dropout=0.0)
    nn.init.normal_(made.leave[2].weight, std=0.02)
    return made


def denoiser(precision: torch.dtype | None = None) -> Denoiser:
    made = Denoiser(
        network(),
        linear(steps=100),
        Preconditioning(levels=100),
        sample_shape=SHAPE,
        precision=precision,
    )
    return made.eval()


class Written:
    """The CPU's random numbers, on whatever device."""

    def __init__(self, n: int, device: str) -> None:
        self._rng, self._device = Stream("gpu test", indices=range(n)), device

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rng.normal(shape, dtype).to(self._device)


@pytest.mark.parametrize(
    "sampler",
    [DDIM(steps=8), Ancestral(steps=8), Heun(steps=4), AnnealedLangevin(steps=4, inner_steps=2)],
    ids=lambda sampler: sampler.name,
)
def test_samples_are_those_of_the_cpu(sampler: Sampler) -> None:
    model = denoiser()
    start = Written(4, "cpu").normal(SHAPE)
    *_, expected = sampler.states(model, start, Written(4, "cpu"))
    *_, found = sampler.states(model.cuda(), start.cuda(), Written(4, "cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_a_seed_is_the_same_picture_as_on_the_cpu() -> None:
    model = denoiser()
    expected = DDIM(steps=8).sample(model, 4, seed=3).x
    torch.testing.assert_close(
        DDIM(steps=8).sample(model.cuda(), 4, seed=3).x, expected, rtol=1e-3, atol=1e-3
    )


def test_a_sample_depends_on_its_seed_and_index_only() -> None:
    model = denoiser().cuda()
    together = Ancestral(steps=8).sample(model, 40, seed=5).x
    alone = Ancestral(steps=8).sample(model, indices=[33, 2], seed=5, batch_size=1).x
    torch.testing.assert_close(alone, together[[33, 2]], rtol=1e-3, atol=1e-3)
    other = Ancestral(steps=8).sample(model, 1, seed=6).x
    assert (other - together[:1]).abs().mean() > 0.1


def test_exact_oracle_agrees_with_the_cpu_in_float64() -> None:
    mixture = GaussianMixture(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[-1.0, 0.5], [1.0, -0.5]]).double(),
        0.1 * torch.eye(2).double().repeat(2, 1, 1),
        linear(steps=100),
    )
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = mixture(x, 0.4).score
    found = copy.deepcopy(mixture).cuda()(x.cuda(), 0.4).score
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)


def weights(run: Path) -> dict[str, Tensor]:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    return dict(checkpoint["state_dict"])


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


DETERMINISTIC = (*GPU, "hardware.deterministic=true", "network.dropout=0.1")


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_run_resumes_bit_for_bit(here: Path, precision: str) -> None:
    words = (*DETERMINISTIC, f"hardware.precision={precision}", "network.attention=[8]")
    whole = betasigma.train(*words, "steps=8").directory
    part = betasigma.train(*words, "steps=4", "training.checkpoint_every=4").directory
    resumed = betasigma.train(f"resume={part}", "steps=8").directory
    assert_same_bits(weights(resumed), weights(whole))


def test_sampling_on_the_way_does_not_disturb_training(here: Path) -> None:
    without = betasigma.train(*DETERMINISTIC, "steps=6").directory
    with_samples = betasigma.train(*DETERMINISTIC, "steps=6", "training.sample_every=2").directory
    assert_same_bits(weights(with_samples), weights(without))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_device_of_several_is_one_device(here: Path, strategy: str) -> None:
    alone = betasigma.train(*DETERMINISTIC).directory
    words = (*DETERMINISTIC, f"hardware.strategy={strategy}", "hydra.run.dir=outputs/shared")
    subprocess.run([sys.executable, str(ROOT / "train.py"), *words], cwd=here, check=True)
    found, expected = weights(here / "outputs/shared"), weights(alone)
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # gradients in buckets choose other kernels
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_batch_that_finds_no_memory_is_halved() -> None:
    model = denoiser().cuda()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    expected = DDIM(steps=2).sample(model, 64, seed=1).x
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 600 * 2**20) / total)
    try:
        found = DDIM(steps=2).sample(model, 4096, seed=1, batch_size=4096)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.batch_size < 4096
    assert len(found.x) == 4096
    torch.testing.assert_close(found.x[:64], expected, rtol=1e-3, atol=1e-3)


def step_of(model: nn.Module, x: Tensor, c: Tensor) -> list[Tensor]:
    loss = model(x, c).float().square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compiled_and_replayed_it_computes_the_same(
    cuda_graphs: bool, memory_format: torch.memory_format, recwarn: pytest.WarningsRecorder
) -> None:
    plain = network().cuda().to(memory_format=memory_format)
    compiled = copy.deepcopy(plain)
    compile_in_place(compiled, cuda_graphs)
    for seed in range(3):  # the third call is a replay
        generator = torch.Generator().manual_seed(seed)
        x = (
            torch.randn(8, *SHAPE, generator=generator)
            .cuda()
            .contiguous(memory_format=memory_format)
        )
        c = torch.rand(8, generator=generator).cuda() * 100
        torch.testing.assert_close(
            step_of(compiled, x, c), step_of(plain, x, c), rtol=2e-3, atol=2e-4
        )
    assert not [w for w in recwarn if "torch.compile failed" in str(w.message)]


def test_bfloat16_follows_float32() -> None:
    x = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0)).cuda()
    exact, rounded = denoiser().cuda(), denoiser(torch.bfloat16).cuda()
    with torch.no_grad():
        expected, found = exact(x, 0.5).eps, rounded(x, 0.5).eps
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.02


class Traced(Callback):
    """Profiles a few steps in the middle of a run."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self.calls: dict[str, int] = {}
        self._profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def on_train_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self._first:
            torch.cuda.synchronize()
            self._profiler.__enter__()
        elif trainer.global_step == self._last:
            self._profiler.__exit__(None, None, None)
            self.calls = {e.key: e.count for e in self._profiler.key_averages()}


WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls in which the processor waits for the GPU."""


def test_no_step_waits_for_the_gpu(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from betasigma.training import trainer

    traced, make = Traced(4, 12), trainer.make_callbacks
    from betasigma.commands import train

    monkeypatch.setattr(train, "make_callbacks", lambda nodes: [*make(nodes), traced])
    betasigma.train(*GPU, "steps=20", "training.log_every=100", "hardware.precision=bf16")
    assert traced.calls["cudaLaunchKernel"] > 8 * 50  # the profiler saw the steps
    waits = {name: traced.calls[name] for name in WAITING if name in traced.calls}
    assert waits in ({}, {"cudaDeviceSynchronize": 1})  # leaving the profiler waits once


@pytest.mark.parametrize(("repaid_after", "compiled"), [(0.0, True), (1e6, False)])
def test_a_training_is_compiled_where_enough_of_it_is_left(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repaid_after: float,
    compiled: bool,
) -> None:
    from betasigma.training import compiling

    monkeypatch.setattr(compiling, "REPAID_AFTER", repaid_after)
    run = betasigma.train(*GPU, "steps=60", "data.flip=false")
    decision = "compiling the network" if compiled else "not compiling the network"
    assert f"\n{decision}: " in capsys.readouterr().out
    assert all(torch.isfinite(value).all() for value in weights(run.directory).values())
