"""A GPU: training steps, sampling and features against public peers; the framework's own time; the
time until the first step.

    python benchmarks/gpu.py                            # on a GPU
    python benchmarks/gpu.py --only features start      # some sections; what others have left stays
    python benchmarks/gpu.py --device cpu               # small, to see that it runs

On a GPU the results are those of the docs, in benchmarks/results. Ten minutes of CIFAR-10 from
images in class folders, with grid, distance and its floor, are two runs of a family each::

    python train.py experiment=ddpm_cifar10 data=image_folder data.root=CIFAR10 \\
        data.image_size=32 stop.minutes=10 evaluation.n=2000 sampler=ddim sampler.steps=100
    python train.py experiment=ncsnv2_cifar10 data=image_folder data.root=CIFAR10 \\
        data.image_size=32 stop.minutes=10 evaluation.n=2000

Candidates have processes of their own, are built (and compiled) at the same time, and then take
turns. A turn is a few steps, after which the candidate waits for the GPU. Images are made up:
speed does not read them.
"""

from __future__ import annotations

import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from betasigma.commands.assemble import make_sampler
from betasigma.data.pixels import to_uint8
from betasigma.devices import move_to_device
from betasigma.networks.compiled import compile_in_place
from fid import random_inception
from harness import machine, ours, peers
from harness.images import png_folder
from harness.report import ROOT, Cell, Report, default_out, options, with_spread
from harness.timing import Apart, Step, Timings, interleaved

STEPS = 5
"""Training steps in a turn."""

NFE = 20


class Case(NamedTuple):
    """A network and the batch that it is trained on."""

    title: str
    overrides: tuple[str, ...]
    peer: dict[str, Any]
    size: int
    batch: int


CASES = {
    "cifar": Case(
        "DDPM's CIFAR-10 U-Net, 3×32×32",
        ("experiment=ddpm_cifar10", "network=unet_ddpm_cifar10"),
        peers.CIFAR["diffusers"],
        size=32,
        batch=128,
    ),
    "64": Case(
        "the same widths at 3×64×64",
        ("experiment=ddpm_cifar10", "network=unet_64"),
        peers.CIFAR["diffusers"]
        | {
            "sample_size": 64,
            "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        },
        size=64,
        batch=32,
    ),
    "tiny": Case(
        "a small network, to see that this runs",
        ("experiment=ddpm_cifar10", "network=unet_8", "network.num_classes=0"),
        {
            **{"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1},
            **{"block_out_channels": (32,), "norm_num_groups": 8},
            **{"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
        },
        size=8,
        batch=4,
    ),
}

SECTIONS = ("training", "sampling", "framework", "features", "pipeline", "start", "larger")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(
        __doc__,
        argv,
        ("--device", {"choices": ("cuda", "cpu"), "default": "cuda"}),
        ("--rounds", {"type": int, "default": 7}),
        ("--only", {"nargs": "+", "choices": SECTIONS, "default": list(SECTIONS)}),
    )
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this machine has no CUDA device: not measured")
    if chosen.device == "cuda" and chosen.out == str(default_out(chosen.size)):
        chosen.out = str(default_out("full"))
    report = Report(report_name(chosen.device), chosen, keeps=True)
    names = ("cifar", "64") if chosen.device == "cuda" else ("tiny",)
    limits = measured_limits(chosen.device, chosen.rounds)
    report.table("Limits of this device (TFLOP/s)", ["what", "TFLOP/s"], limits.items())
    report.raw("limits", limits)
    with TemporaryDirectory() as folder:
        sections: dict[str, Callable[[], None]] = {
            "training": lambda: training(report, names[:1], limits, Path(folder), chosen),
            "sampling": lambda: sampling(report, CASES[names[0]], Path(folder), chosen),
            "features": lambda: features(report, Path(folder), chosen),
            "pipeline": lambda: pipeline(report, CASES[names[0]], Path(folder), chosen),
            "framework": lambda: framework(report, CASES[names[0]], Path(folder), chosen),
            "start": lambda: start(report, Path(folder)),
            "larger": lambda: training(report, names[1:], limits, Path(folder), chosen),
        }
        for name in chosen.only:
            sections[name]()
            report.save()
    report.note(
        "Peers get a ready batch, without data loading, progress bars or trackers; so does our "
        "bare loop. 'framework' holds the real command against that loop."
    )
    report.save()


def report_name(device: str) -> str:
    """``gpu_<card>``, or ``gpu_cpu`` where none was asked for."""
    if device == "cpu":
        return "gpu_cpu"
    return "gpu_" + torch.cuda.get_device_name(0).lower().replace("nvidia ", "").replace(" ", "_")


def synchronised(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def measured_limits(device: str, rounds: int) -> dict[str, float]:
    """TFLOP/s of a matrix product and of the cifar case's convolutions, in bfloat16,
    channels_last.
    """
    big = device == "cuda"
    n, batch = (8192, 128) if big else (256, 4)
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    work: dict[str, float] = {f"matmul {n}": 2 * n**3}
    calls: dict[str, Step] = {f"matmul {n}": _waiting(lambda: a @ b, device)}
    for channels, size in ((128, 32), (256, 16)):
        x, w = (
            torch.randn(shape, device=device, dtype=torch.bfloat16).to(
                memory_format=torch.channels_last
            )
            for shape in ((batch, channels, size, size), (channels, channels, 3, 3))
        )
        name = f"conv3x3 {channels} at {size}"
        work[name] = 2 * batch * size**2 * channels**2 * 9
        calls[name] = _waiting(partial(F.conv2d, x, w, padding=1), device)
    with torch.inference_mode():
        timings = interleaved(calls, rounds, warmup=3)
    return {name: 10 * work[name] / timings.median(name) / 1e12 for name in calls}


def _waiting(call: Step, device: str) -> Step:
    def run() -> None:
        for _ in range(10):
            call()
        synchronised(device)

    return run


class Turns(NamedTuple):
    """What candidates have done, by name.

    Attributes:
        timings: of the turns.
        first: seconds of building and the first call.
        memory: GiB of the GPU, at most.
        failed: why those failed that did.
    """

    timings: Timings
    first: dict[str, float]
    memory: dict[str, float]
    failed: dict[str, str]


@contextmanager
def turns(
    builders: Mapping[str, Callable[[], Step]], rounds: int, warmup: int = 2
) -> Iterator[Turns]:
    """Build all candidates at the same time, then time them in turns."""
    with ExitStack() as running:
        all_of_them = {n: running.enter_context(Apart(b)) for n, b in builders.items()}
        for candidate in all_of_them.values():
            candidate.begin()
        first, failed = {}, {}
        for name, candidate in all_of_them.items():
            try:
                first[name] = candidate.seconds()
            except RuntimeError as error:
                failed[name] = str(error)[:300]
                print(f"FAILED {name}: {failed[name]}", flush=True)
        works = {name: all_of_them[name] for name in first}
        timings = interleaved(works, rounds, warmup)
        yield Turns(timings, first, {n: work.ask(peak_memory) for n, work in works.items()}, failed)


def peak_memory() -> float:
    """GiB that tensors of this process have taken of the GPU at most; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


# ---------------------------------------------------------------------------- training


def configured(case: Case, data: Path, device: str, *overrides: str) -> dict[str, Any]:
    """The run's config: the published one, on made-up images, without pauses between steps."""
    pauses = [f"training.{key}_every=1000000" for key in ("validate", "sample", "checkpoint")]
    return ours.composed(
        [
            *case.overrides,
            "data=image_folder",
            f"data.image_size={case.size}",
            f"data.root={data}",
            "data.val_size=1",
            f"batch_size={case.batch}",
            "evaluation=none",
            "logger=none",
            f"hardware={'gpu' if device == 'cuda' else 'cpu'}",
            *pauses,
            *overrides,
        ]
    )


def our_steps(case: Case, data: Path, device: str, *overrides: str) -> Step:
    """Steps of our network in the bare loop."""
    config = configured(case, data, device, *overrides)
    made = ours.parts(config)
    return several(ours.bare_step(config, made, batch_of(case, device)), device)


def diffusers_steps(
    case: Case, device: str, mixed_precision: str, channels_last: bool, mode: str | None
) -> Step:
    """Steps of diffusers' example."""
    model = peers.diffusers_unet(case.peer).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if mode:
        model.compile(mode=mode)
    training = peers.DiffusersTraining(model, mixed_precision)
    training.average.to(device)
    x = batch_of(case, device)

    def step() -> None:
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        training.step(x)

    return several(step, device)


def lucidrains_steps(case: Case, device: str) -> Step:
    """Steps of denoising-diffusion-pytorch, with the mixed precision of its README on a GPU."""
    settings = {"dim": 64, "dim_mults": (1, 2, 4, 8), "channels": 3}
    x = (batch_of(case, device) + 1) / 2
    precision = "fp16" if device == "cuda" else "no"
    return several(peers.lucidrains_step(settings, x, precision), device)


def batch_of(case: Case, device: str) -> torch.Tensor:
    """A ready batch."""
    return torch.rand(case.batch, 3, case.size, case.size, device=device) * 2 - 1


def several(step: Step, device: str) -> Step:
    """A few steps, until the device has done them."""

    def run() -> None:
        for _ in range(STEPS):
            step()
        synchronised(device)

    return run


def training(
    report: Report, names: Sequence[str], limits: dict[str, float], folder: Path, chosen: Any
) -> None:
    """Steps of every case, ours and the peers'."""
    device = chosen.device
    for name in names:
        case = CASES[name]
        data = png_folder(folder / name, 300, 3, case.size)
        mine = partial(our_steps, case, data, device)
        builders: dict[str, Callable[[], Step]] = {
            "ours, default format": partial(mine, "hardware.channels_last=false", *EAGER),
            "ours": partial(mine, *EAGER),
            "ours, compiled": partial(mine, "hardware.compile=true"),
            "ours, CUDA graphs": partial(mine, "hardware.compile=cuda_graphs"),
            "diffusers' example": partial(diffusers_steps, case, device, "no", False, None),
            "diffusers, bf16": partial(diffusers_steps, case, device, "bf16", True, None),
            "diffusers, compiled": partial(diffusers_steps, case, device, "bf16", True, "default"),
            "diffusers, CUDA graphs": partial(
                diffusers_steps, case, device, "bf16", True, "reduce-overhead"
            ),
            "denoising-diffusion-pytorch": partial(lucidrains_steps, case, device),
        }
        for left_out in LEFT_OUT.get(name, ()):
            del builders[left_out]
        began = time.monotonic()
        with turns(builders, chosen.rounds) as taken:
            table_of_steps(report, case, data, limits, taken)
        report.raw(f"{case.title}: seconds", taken.timings.seconds)
        report.raw(f"{case.title}: failed", taken.failed)
        print(f"{case.title}: {time.monotonic() - began:.0f} s", flush=True)
        report.save()


LEFT_OUT = {
    "64": ("ours, default format", "ours, compiled", "diffusers, compiled"),
    "tiny": ("ours, compiled", "diffusers, compiled", "diffusers, CUDA graphs"),
}
"""Candidates that a case does without, for the time they take to compile."""

EAGER = ("hardware.compile=false",)


def table_of_steps(
    report: Report, case: Case, data: Path, limits: dict[str, float], taken: Turns
) -> None:
    """Images/s, TFLOP/s, share of the limits, ratios, memory."""
    timings = taken.timings
    product = next(limit for name, limit in limits.items() if name.startswith("matmul"))
    config = configured(case, data, "cpu", "hardware.precision=32", *EAGER)
    small = {**config, "batch_size": 2}
    flops = machine.alone(_flops_of_step, small, case.size) / 2
    best = min((n for n in timings.seconds if n.startswith("ours")), key=timings.median)
    rows: list[list[Cell]] = []
    for name in timings.seconds:
        seconds = timings.median(name) / STEPS
        tera = flops * case.batch / seconds / 1e12
        counted = name != "denoising-diffusion-pytorch"  # whose network is another
        rows.append(
            [
                name,
                case.batch / seconds,
                1e3 * seconds,
                tera if counted else "",
                f"{100 * tera / product:.0f} %" if counted else "",
                f"{100 * tera / min(limits.values()):.0f} %" if counted else "",
                with_spread(timings.ratio(name, best), timings.spread(name, best)),
                taken.memory[name],
                taken.first[name],
            ]
        )
    report.table(
        f"{case.title}, batch {case.batch}, {flops / 1e9:.1f} GFLOP an image",
        [
            *("", "images/s", "ms a step", "TFLOP/s"),
            *("of the matrix limit", "of the convolution limit", f"{best} is faster by"),
            *("peak GiB", "s until the first turn ends"),
        ],
        rows,
    )
    if case is not CASES["cifar"]:
        return
    for peer, wanted in (("diffusers' example", 1.5), ("diffusers, CUDA graphs", 1.1)):
        if peer in timings.seconds:
            ratio = timings.ratio(peer, "ours, CUDA graphs")
            report.target(f"{case.title}: ours, CUDA graphs, against {peer}", ratio, wanted)
    tera = flops * case.batch * STEPS / timings.median(best) / 1e12
    report.target(f"{case.title}: share of the slowest limit", tera / min(limits.values()), 0.5)


def _flops_of_step(config: dict[str, Any], size: int) -> float:
    x = torch.rand(config["batch_size"], 3, size, size)
    return ours.flops_of(ours.bare_step(config, ours.parts(config), x))


# ---------------------------------------------------------------------------- sampling


def our_sampling(case: Case, data: Path, device: str, n: int, compiled: bool) -> Step:
    """DDIM of ours."""
    config = configured(case, data, device, "sampler=ddim", f"sampler.steps={NFE}")
    denoiser = ours.parts(config).module.average
    move_to_device(denoiser, config["hardware"])
    if compiled:
        compile_in_place(denoiser.network)
    sampler = make_sampler(config["sampler"])
    return lambda: sampler.sample(denoiser, n, batch_size=n)


def diffusers_sampling(case: Case, device: str, n: int, half: bool) -> Step:
    """diffusers' DDIM pipeline, in float32 as by default or in float16."""
    from diffusers import DDIMPipeline, DDIMScheduler

    model = peers.diffusers_unet(case.peer).to(device)
    if half:
        model = model.to(torch.float16, memory_format=torch.channels_last)
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    pipeline = peers.diffusers_pipeline(DDIMPipeline, model, scheduler)
    return lambda: pipeline(batch_size=n, num_inference_steps=NFE, output_type="np")


def sampling(report: Report, case: Case, folder: Path, chosen: Any) -> None:
    """Noise in, images out."""
    device, n = chosen.device, 256 if chosen.device == "cuda" else 2
    data = png_folder(folder / "sampling", 20, 3, case.size)
    builders: dict[str, Callable[[], Step]] = {
        "ours": partial(our_sampling, case, data, device, n, False),
        "ours, compiled": partial(our_sampling, case, data, device, n, True),
        "diffusers, fp32": partial(diffusers_sampling, case, device, n, False),
        "diffusers, fp16": partial(diffusers_sampling, case, device, n, True),
    }
    with turns(builders, chosen.rounds) as taken:
        timings = taken.timings
        report.table(
            f"{n} images by DDIM, {NFE} NFE, {case.title}",
            [
                *("", "images/s", "ours, compiled, is faster by", "ours is faster by"),
                *("peak GiB", "s at first"),
            ],
            [
                [
                    name,
                    n / timings.median(name),
                    *(
                        with_spread(timings.ratio(name, us), timings.spread(name, us))
                        for us in ("ours, compiled", "ours")
                    ),
                    taken.memory[name],
                    taken.first[name],
                ]
                for name in timings.seconds
            ],
        )
    report.raw("sampling", {"seconds": timings.seconds, "failed": taken.failed})


# ---------------------------------------------------------------------------- features


def features(report: Report, folder: Path, chosen: Any) -> None:
    """Inception features of images that are on the device, against torch-fidelity."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from betasigma.evaluation.features import InceptionV3

    device, n = chosen.device, 1024 if chosen.device == "cuda" else 4
    weights = random_inception(folder / "weights-inception-2015-12-05-6726825d.pth")
    mine = InceptionV3(weights).to(device)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    theirs = theirs.to(device).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = images.to(device)

    @torch.inference_mode()
    def fidelity() -> torch.Tensor:
        return torch.cat([theirs(part)[0] for part in images.split(64)])

    a, b = mine.extract(images)[0], fidelity()
    error = float((a - b).norm() / b.norm())
    candidates = {"ours": lambda: mine.extract(images)[0], "torch-fidelity": fidelity}
    timings = _in_turns(candidates, device, chosen.rounds)
    rows: list[list[Cell]] = [
        [
            name,
            n / timings.median(name),
            with_spread(timings.ratio(name, "ours"), timings.spread(name, "ours")),
        ]
        for name in candidates
    ]
    report.table(
        f"Inception features of {n} images (relative difference {error:.1e})",
        ["", "images/s", "ours is faster by"],
        rows,
    )
    report.raw("features", timings.seconds)


def pipeline(report: Report, case: Case, folder: Path, chosen: Any) -> None:
    """Samples and their features as an evaluation makes them, in host memory in between, against
    both alone.
    """
    from betasigma.evaluation.features import InceptionV3

    device, n = chosen.device, 256 if chosen.device == "cuda" else 4
    data = png_folder(folder / "pipeline", 20, 3, case.size)
    weights = random_inception(folder / "weights-inception-2015-12-05-6726825d.pth")
    extractor = InceptionV3(weights).to(device)
    sample: Callable[[], Any] = our_sampling(case, data, device, n, False)

    def images() -> torch.Tensor:
        return to_uint8(sample().x, (-1.0, 1.0))

    drawn = images().to(device)
    both = "one after the other, as an evaluation does"
    candidates: dict[str, Callable[[], object]] = {
        "samples": sample,
        "features": lambda: extractor.extract(drawn),
        both: lambda: extractor.extract(images()),
    }
    timings = _in_turns(candidates, device, chosen.rounds)
    report.table(
        f"FID pipeline: {n} images by DDIM, {NFE} NFE, {case.title}",
        ["", "images/s"],
        [[name, n / timings.median(name)] for name in candidates],
    )
    report.raw("pipeline", timings.seconds)
    alone = timings.median("samples") + timings.median("features")
    together = timings.median(both) / alone
    report.target("FID pipeline / samples and features alone", together, at_most=1.02)


def _in_turns(candidates: Mapping[str, Callable[[], object]], device: str, rounds: int) -> Timings:
    """Time calls in turns, each until the device has done it."""

    def wait(call: Callable[[], object]) -> Step:
        def run() -> None:
            call()
            synchronised(device)

        return run

    return interleaved({k: wait(v) for k, v in candidates.items()}, rounds, warmup=2)


# ---------------------------------------------------------------------------- the real command


def framework(report: Report, case: Case, folder: Path, chosen: Any) -> None:
    """Images/s of ``train.py`` against the bare loop's, one after the other."""
    device = chosen.device
    data = png_folder(folder / "framework", 300, 3, case.size)
    mode = "cuda_graphs" if device == "cuda" else "false"
    words = (f"hardware.compile={mode}",)
    steps, every = (240, 40) if device == "cuda" else (8, 2)
    config = configured(case, data, device, *words, f"steps={steps}", f"training.log_every={every}")
    run = folder / "framework_run"
    machine.alone(_fitted, config, run)
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        found = [
            float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == "train/images_per_second"
        ]
    command = statistics.median(found[2:])
    bare = Apart(partial(our_steps, case, data, device, *words))
    with bare:
        timings = interleaved({"bare": bare}, chosen.rounds, warmup=3)
    loop = case.batch * STEPS / timings.median("bare")
    report.table(
        f"The command against the bare loop, {case.title}, hardware.compile={mode}",
        ["", "images/s"],
        [["train.py", command], ["bare loop", loop]],
    )
    report.raw("framework", {"train.py": found, "bare": timings.seconds})
    report.target("framework's time / the bare step", loop / command - 1, at_most=0.02)


def _fitted(config: dict[str, Any], run: Path) -> None:
    ours.fit(config, ours.parts(config), run)


def start(report: Report, folder: Path) -> None:
    """Seconds from the command to the first step's loss, on the default data."""
    run = folder / "first"
    words = ["steps=2", "training.log_every=1", "evaluation=none", "logger=none"]
    since = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words, f"hydra.run.dir={run}"],
        stdout=subprocess.DEVNULL,
    )
    metrics = run / "metrics.csv"
    while not (metrics.is_file() and "train/objective" in metrics.read_text(encoding="utf-8")):
        if process.poll() not in (None, 0):
            raise RuntimeError(f"train.py ended with status {process.returncode}")
        time.sleep(0.01)
    seconds = time.monotonic() - since
    process.wait()
    report.table("Start", ["what", "seconds"], [["command to first step", seconds]])


if __name__ == "__main__":
    main()
