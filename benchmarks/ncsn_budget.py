"""At how many network evaluations NCSN's best sampler equals its annealed Langevin with 1,000.

Takes a trained NCSN run (``--run``; by default the one that ``time_to_quality.py`` left) and
measures it as ``scripts/evaluate.py`` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from betasigma.commands.assemble import Config, make_data, make_sampler
from betasigma.commands.load import load_run, with_data_location
from betasigma.devices import move_to_device, precision_of
from betasigma.errors import UserError
from harness import ours
from harness.quality import Judge, mnist_or_stand_in
from harness.report import Report, options

SAMPLERS = {
    "ddim": (1, ()),
    "ancestral_respaced": (1, ()),
    "dpm_solver": (1, ("sampler.eta=1", "sampler.clip=true")),
    "predictor_corrector": (2, ()),
}
"""Network evaluations a step, and settings."""

START = "sampler.start=moments"
"""Of these: N(0, σ²) is far from the perturbed data where σ is not much larger than they are, and
few steps do not forget it.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(
        __doc__,
        argv,
        ("--run", {"help": "directory of a trained NCSN"}),
        ("--n", {"type": int, "help": "images of each distance; 250 at full size, else 16"}),
    )
    report = Report("ncsn_budget", chosen)
    run = Path(chosen.run or Path(chosen.out) / "time_to_quality" / "ncsn")
    if not run.exists():
        raise UserError(f"--run={run} does not exist; give the directory of a trained NCSN")
    n = chosen.n or (250 if report.full else 16)
    budgets = (10, 20, 50, 100) if report.full else (6,)
    hardware = ours.composed([])["hardware"]
    loaded = load_run(run, precision_of(hardware))
    move_to_device(loaded.denoiser, hardware)
    with TemporaryDirectory() as scratch:
        root = mnist_or_stand_in(chosen, Path(scratch), report)
        data = make_data(with_data_location(loaded.config, {"root": str(root)}))
        data.setup()
    judge = Judge(data, 10_000 if report.full else 64)

    def distance(node: Config) -> tuple[float, int]:
        found, nfe = judge.samples(loaded.denoiser, make_sampler(node), n)
        return found["train"], nfe

    langevin = ours.composed(["model=ncsn", *([] if report.full else ["sampler.inner_steps=1"])])[
        "sampler"
    ]
    wanted, spent = distance(langevin)
    found: dict[str, dict[int, float]] = {}
    for name, (cost, settings) in SAMPLERS.items():
        for budget in budgets:
            steps = math.ceil(budget / cost)
            words = ["model=ncsn", f"sampler={name}", *settings, START, f"sampler.steps={steps}"]
            value, nfe = distance(ours.composed(words)["sampler"])
            found.setdefault(name, {})[nfe] = value
    report.table(
        f"{judge.name} of an NCSN after {loaded.step} steps, n={n}; "
        f"annealed Langevin with {spent} NFE: {wanted:.3g}",
        ["sampler", *(f"NFE ≈ {budget}" for budget in budgets)],
        [[name, *values.values()] for name, values in found.items()],
    )
    equal = [nfe for values in found.values() for nfe, v in values.items() if v <= wanted]
    report.table(
        "Fewest NFE with which a sampler is no worse than annealed Langevin",
        ["annealed Langevin's NFE", "fewest NFE"],
        [[spent, min(equal) if equal else f"more than {max(budgets)}"]],
    )
    report.raw("distances", {"annealed_langevin": {spent: wanted}, **found})
    report.save()


if __name__ == "__main__":
    main()
