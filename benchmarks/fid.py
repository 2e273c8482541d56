"""Features and Fréchet distances against torch-fidelity and torchmetrics: the same images, the same
(random) Inception weights, the same values, in less time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from betasigma.evaluation.features import InceptionV3
from betasigma.evaluation.frechet import FeatureMoments, frechet_distance
from harness import machine
from harness.report import Report, options, with_spread
from harness.timing import interleaved


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__, argv, ("--rounds", {"type": int, "help": "7 at full size, else 3"}))
    report = Report("fid", chosen)
    rounds = chosen.rounds or (7 if report.full else 3)
    with TemporaryDirectory() as folder:
        features(report, Path(folder), rounds, 64 if report.full else 8)
    distance(report, rounds if report.full else 1, 2048 if report.full else 512)
    memory(report, [1000, 10_000, 50_000] if report.full else [500, 2000])
    report.save()


def random_inception(path: Path) -> Path:
    """A file as torch-fidelity publishes it, of weights that nobody trained."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any, **__: Any) -> Any:
            return None

    empty = path.with_suffix(".empty")
    torch.save({}, empty)
    network = Unloaded("inception-v3-compat", ["2048"], str(empty))
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            std = (2 / layer.weight[0].numel()) ** 0.5
            nn.init.normal_(layer.weight, 0, std, generator=generator)
    torch.save(network.state_dict(), path)
    return path


def features(report: Report, folder: Path, rounds: int, n: int) -> None:
    """Images/s of the feature extraction, and whether the features are the same."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    weights = random_inception(folder / "weights-inception-2015-12-05-6726825d.pth")
    ours = InceptionV3(weights)
    fidelity = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights)).eval()
    metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)

    @torch.inference_mode()
    def theirs(network: Any) -> Tensor:
        parts = [network(part) for part in images.split(64)]
        return torch.cat([part[0] if isinstance(part, tuple) else part for part in parts])

    candidates: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours.extract(images)[0],
        "torch-fidelity": partial(theirs, fidelity),
        "torchmetrics": partial(theirs, metric.inception),
    }
    found = {name: extract() for name, extract in candidates.items()}
    timings = interleaved(candidates, rounds, warmup=0)
    scale = found["torch-fidelity"].abs().max()
    report.table(
        f"Inception features of {n} images",
        ["", "images/s", "ours is faster by", "largest difference to torch-fidelity, relative"],
        [
            [
                name,
                n / timings.median(name),
                with_spread(timings.ratio(name, "ours"), timings.spread(name, "ours")),
                float((found[name] - found["torch-fidelity"]).abs().max() / scale),
            ]
            for name in candidates
        ],
    )
    report.note("torchmetrics resizes with antialiasing by default, hence its difference.")
    report.raw("features", timings.seconds)
    report.target(
        "images/s, ours / torch-fidelity", timings.ratio("torch-fidelity", "ours"), at_least=1.5
    )
    half = n // 2
    a, b = (
        distance_of(found["ours"][:half], found["ours"][half:]),
        distance_of(found["torch-fidelity"][:half], found["torch-fidelity"][half:]),
    )
    report.target("FID of the same images, relative difference", abs(a - b) / b, at_most=1e-3)


def distance_of(a: Tensor, b: Tensor) -> float:
    """Our Fréchet distance between two sets of features."""
    return frechet_distance(
        FeatureMoments(a.shape[1]).update(a), FeatureMoments(b.shape[1]).update(b)
    )


def distance(report: Report, rounds: int, dim: int) -> None:
    """The distance itself, between well-conditioned Gaussians."""
    from torchmetrics.image.fid import _compute_fid

    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(2 * dim, dim, generator=generator).double() * (1 + i) for i in range(2)]
    a, b = (FeatureMoments(dim).update(x) for x in sets)
    values: dict[str, float] = {}

    def ours() -> None:
        values["ours"] = frechet_distance(a, b)

    def theirs() -> None:
        values["torchmetrics"] = float(_compute_fid(a.mean, a.cov, b.mean, b.cov))

    timings = interleaved({"ours": ours, "torchmetrics": theirs}, rounds, warmup=0)
    report.table(
        f"Fréchet distance of {dim} features, float64",
        ["", "seconds", "value"],
        [[name, timings.median(name), values[name]] for name in timings.seconds],
    )
    report.raw("distance", timings.seconds)
    report.target(
        "Fréchet distance, ours / torchmetrics",
        timings.ratio("ours", "torchmetrics"),
        at_most=1 / 3,
    )


def memory(report: Report, sizes: Sequence[int]) -> None:
    """Peak memory of taking in n feature vectors, as the evaluation does."""
    peaks = {n: machine.peak_memory(partial(take_in, n)) for n in sizes}
    report.table("Memory of the moments of n × 2048 features", ["n", "MiB"], peaks.items())
    report.target(
        f"memory at n={sizes[-1]:,} / at n={sizes[0]:,}",
        peaks[sizes[-1]] / peaks[sizes[0]],
        None,
        1.1,
    )


def take_in(n: int) -> None:
    """Moments of n random feature vectors, 250 at a time."""
    moments, generator = FeatureMoments(2048), torch.Generator().manual_seed(0)
    for _ in range(n // 250):
        moments.update(torch.randn(250, 2048, generator=generator))
    assert moments.count == n


if __name__ == "__main__":
    main()
