"""A key that was typed and has no effect is refused, with what would give it one."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import TINY, launch

REFUSED = {
    "objective.gamma=3": "without objective.weighting=min_snr",
    "objective={gamma:3}": "without objective.weighting=min_snr",
    "preconditioning.sigma_data=0.3": "without preconditioning.prediction=edm",
    "preconditioning.conditioning=none network.embedding=fourier": (
        "with preconditioning.conditioning=none"
    ),
    "network.conditional=false network.embedding=fourier": "without network.conditional=true",
    "network.heads=2": "without network.attention with a resolution",
    "data.root=x": "on data=digits, which has no files",
    "data.workers=1": "on images that are held in memory",
    "data.mixture=ring": "on data=digits",
    "sampler=heun sampler.grid=levels sampler.rho=3": "without sampler.grid=karras",
    "sampler=heun sampler.s_noise=1.01": "without sampler.s_churn above 0",
    "sampler=heun sampler.s_churn=1 sampler.s_min=1e6": "with sampler.s_min=1e+06 and",
    "sampler=heun sampler.s_churn=1 sampler.s_max=1e-6": "with sampler.s_min=0 and",
    "sampler=heun sampler.s_churn=1 sampler.steps=2 sampler.s_min=1 sampler.s_max=2": (
        "with sampler.s_min=1 and sampler.s_max=2.0: no step is from a sigma/alpha between"
    ),
    "sampler=predictor_corrector sampler.corrector_steps=0 sampler.snr=0.1": (
        "without sampler.corrector_steps above 0"
    ),
    "model=ncsn +sigma.overlap=0.3": "without sigma.levels=auto",
    "model=ncsn sampler=ddim +sigma.step=0.1": "no other key takes it from there",
    "+beta.offset=0.1": "with schedule=linear, which does not have it",
    "+model.defaults.new=1": "no other key takes it from there",
    "model.defaults.prediction=x0 preconditioning.prediction=v": "no other key takes it",
    "objective.times=continuous denoiser.off_levels=snap": "without objective.times=levels",
    "evaluation.n=4": "without evaluation.metrics",
    "logger=none objective_metric=val/objective": "without a sweeper that searches",
    "+cluster.partition=gpu": "without cluster=slurm, and the run would be on this machine",
    "+cluster._target_=os.system": "without cluster=slurm, and the run would be on this machine",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_key_without_effect_is_refused(here: Path, words: str) -> None:
    refused = launch("train", *TINY[:-4], "evaluation=none", *words.split())
    assert refused.status == 1
    assert f"has no effect {REFUSED[words]}" in refused.err.replace("effect: ", "effect ")
    assert refused.err.count("\n") == 1
    assert not (here / "outputs").exists()


OF_A_RUN = {
    "sample sampler=ddim sampler.rho=3": "without sampler.grid=karras",
    "sample n=4 indices=[1,2]": "beside indices=[1, 2]",
    "sample seed=3 seeds=[1,2]": "beside seeds=[1, 2]",
    "sample data.root=x": "on data=digits, which has no files",
    "sample hardware.strategy=ddp": "here: processes share samples out",
    "edit edit=vary hardware.devices=2": "here: one process edits",
    "evaluate sampler=ddim sampler.rho=3": "without sampler.grid=karras",
    "sample sampler=heun sampler.s_churn=1 sampler.s_min=1e6": "with sampler.s_min=1e+06",
    "evaluate evaluation.metrics=[] n=4": "without evaluation.metrics, for which",
    "evaluate evaluation.metrics=[] sampler=ddim": "without evaluation.metrics, for which",
    "evaluate evaluation.extractor=identity evaluation.download=true": (
        "with evaluation.extractor=identity"
    ),
    "edit edit=inpaint seeds=[1,2]": ": this edit is of images",
    "edit edit=vary sampler=ddim sampler.start=uniform": ": this edit starts from the images",
    "edit edit=interpolate sampler=ddim": ": this edit follows the probability flow",
    "edit edit=invert seed=3": ": this edit draws nothing",
    "edit edit=invert hardware.precision=bf16": "along the probability flow: it is",
}


@pytest.mark.parametrize("words", OF_A_RUN)
def test_it_is_refused_by_the_commands_that_read_a_run(
    here: Path, ddpm_run: Path, words: str
) -> None:
    app, *keys = words.split()
    refused = launch(app, f"run={ddpm_run}", *keys)
    assert refused.status == 1
    assert f" has no effect{'' if OF_A_RUN[words][0] == ':' else ' '}{OF_A_RUN[words]}" in (
        refused.err
    )
    assert refused.err.count("\n") == 1
    assert not (here / "outputs").exists()
