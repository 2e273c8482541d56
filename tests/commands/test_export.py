"""A trained model in other tools' formats: it computes and draws the same there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from launching import TINY, launch

import betasigma
from betasigma.errors import UserError
from betasigma.exports.graphs import write_onnx
from betasigma.samplers import Ancestral

CLOSE = 1e-4
"""What the exports promise."""

FITTING = ("network.channels=16", "network.norm_groups=4", "network.group_width=1")
"""One number of groups, as UNet2DModel has it."""


def trained(tmp: Path, *words: str) -> Path:
    outcome = launch("train", *TINY, "steps=2", *words)
    assert outcome.status == 0, outcome.err
    return outcome.run


def exported(run: Path, to: str, out: Path, *words: str) -> str:
    outcome = launch("export", f"run={run}", f"to={to}", f"out={out}", *words)
    assert outcome.status == 0, outcome.err
    assert (out / "README.md").is_file()
    assert not list(out.parent.glob(".*.partial"))
    return outcome.out


def lively(run: Path) -> None:
    """Give the weights of a run that has hardly trained some size: its last layers are zeros."""
    from betasigma.runs.checkpoint import HEADER, read, save

    path = run / "checkpoints" / "last.ckpt"
    content = read(path)
    generator = torch.Generator().manual_seed(0)
    for name, weight in content["state_dict"].items():
        if name.startswith("average.") and weight.is_floating_point():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    save({**content, HEADER: content[HEADER]}, path)


@pytest.fixture
def run(here: Path) -> Path:
    run = trained(here, *FITTING, "beta.steps=40")
    lively(run)
    return run


@pytest.fixture
def labelled(here: Path) -> Path:
    words = ("network.num_classes=10", "objective.label_dropout=0.1", "schedule=cosine")
    run = trained(here, *FITTING, *words, "beta.steps=30", "sampler=ancestral")
    lively(run)
    return run


class Written:
    """Noise written down beforehand."""

    def __init__(self, draws: torch.Tensor) -> None:
        self.draws = iter(draws)

    def normal(self, shape, dtype=None) -> torch.Tensor:
        return next(self.draws)


def test_diffusers_draws_the_same(run: Path, tmp_path: Path) -> None:
    """With the same noise."""
    out = exported(run, "diffusers", tmp_path / "pipeline")
    assert "DDPMPipeline.from_pretrained" in out
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    denoiser, sampler = betasigma.load(run)
    steps = denoiser.schedule.levels
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.randn(2, 1, 8, 8, generator=generator) for _ in range(steps)])
    theirs = pipeline(
        batch_size=2,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    ours = Ancestral(clip=sampler.clip).states(denoiser, draws[0], Written(draws[1:]))
    *_, last = ours
    assert last.std() > 0.1
    assert (theirs - (last / 2 + 0.5).clamp(0, 1)).abs().max() < CLOSE
    # and it is read again
    again, _ = betasigma.load(tmp_path / "pipeline")
    x0 = denoiser(draws[0], 0.5).x0
    assert (again(draws[0], 0.5).x0 - x0).abs().max() < CLOSE * x0.abs().max()


def test_safetensors_are_loaded_as_the_run_is(run: Path, tmp_path: Path) -> None:
    exported(run, "safetensors", tmp_path / "model", "licence=MIT", "name=digits")
    for named in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        imported = launch("import", f"from={named}")
        assert f"needs no import: give run={named} wherever" in imported.err
    whole, small = betasigma.load(run), betasigma.load(tmp_path / "model")
    for name, weight in whole[0].state_dict().items():
        assert torch.equal(weight, small[0].state_dict()[name])
    torch.testing.assert_close(whole[0].moments.mean, small[0].moments.mean)
    drawn = [sampler.sample(denoiser, 2, seed=1).x for denoiser, sampler in (whole, small)]
    assert torch.equal(*drawn)
    assert launch("sample", f"run={tmp_path / 'model'}", "n=2").status == 0
    _, front, card = (tmp_path / "model" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    for word in ("# digits", "| data | digits |", "averaged, after 2 steps", "train.py"):
        assert word in card
    assert "log_snr" not in card  # errors of validations have their n too, and are no figures


@pytest.mark.slow
@pytest.mark.parametrize("which", ["run", "labelled"])
def test_a_graph_answers_as_the_denoiser(which: str, request, tmp_path: Path) -> None:
    """At any batch size, and in onnxruntime."""
    run = request.getfixturevalue(which)
    denoiser, _ = betasigma.load(run)
    levels = denoiser.schedule.levels
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "x_t": torch.randn(7, 1, 8, 8, generator=generator),
        "level": torch.randint(levels, (7,), generator=generator),
    }
    y = None
    if which == "labelled":
        inputs["labels"] = y = torch.tensor([0, 1, 2, 9, 10, 10, 3])  # 10: no label
    expected = denoiser(inputs["x_t"], (inputs["level"].double() + 1) / levels, y)
    said = exported(run, "onnx", tmp_path / "onnx")
    assert "it differs from the run's model by at most" in said
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    found = session.run(["x0", "eps"], {name: value.numpy() for name, value in inputs.items()})
    exported(run, "torch_export", tmp_path / "program")
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()
    for values in (map(torch.from_numpy, found), program(**inputs)):
        for value, truth in zip(values, (expected.x0, expected.eps), strict=True):
            assert (value - truth).abs().max() < CLOSE * truth.abs().max()
    table = json.loads((tmp_path / "onnx" / "levels.json").read_text())
    torch.testing.assert_close(
        torch.tensor(table["sigma"], dtype=torch.float64),
        denoiser.schedule.sigma(denoiser.schedule.times()),
    )


def test_what_fits_no_format_is_one_sentence(here: Path, run: Path, tmp_path: Path) -> None:
    plain = trained(here, "network.multipliers=[1,2]")
    ncsn = trained(here, *FITTING, "model=ncsn_v1")
    always = trained(here, *FITTING, "network.num_classes=10")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "a").touch()
    for words, sentence in {
        (
            f"run={plain}",
            "to=diffusers",
        ): r"have 2, 4, 6, 8 groups.*train with network\.norm_groups=2",
        (f"run={ncsn}", "to=diffusers"): r"prediction=raw_score must be score",
        (f"run={always}", "to=diffusers"): r"was trained with a label on every image: train with o",
        (f"run={run}", "to=onnxx"): r"to=onnxx must be 'safetensors'",
        (f"run={run}", f"out={taken}"): r"out=.*taken is not empty",
        (f"run={run}", f"out={taken / 'a' / 'b'}"): r"out=.*b cannot be made: .*taken/a is a file",
        (f"run={run}", "out=/proc/x"): r"out=/proc/x cannot be written: [A-Z]",
    }.items():
        outcome = launch("export", *words)
        assert outcome.status == 1
        assert len(outcome.err.splitlines()) == 1

        assert re.search(sentence, outcome.err), outcome.err
    assert not list(tmp_path.glob(".*"))
    assert not list(Path("outputs").glob("*_export_*"))


def test_onnx_without_its_packages_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the weights are read."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    outcome = launch("export", f"run={run}", "to=onnx")
    assert outcome.err == "error: to=onnx needs the onnxscript package: pip install onnxscript\n"
    with pytest.raises(UserError, match="write_onnx needs the onnxscript package"):
        write_onnx(betasigma.load(run)[0], Path("model.onnx"))


def test_a_stranger_s_portable_model(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert f'betasigma.load("{folder}")' in exported(run, "safetensors", folder)
    header = (folder / "model.yaml").read_text()
    for text, sentence in (
        ("a: &a [1]\nb: *a\n", "damaged"),
        ("!!python/object/apply:os.system ['true']", "damaged"),
        ("- 1\n", "not a checkpoint of betasigma"),
        (header.replace("tags: []", "tags: ['${oc.env:HOME}']"), "nothing in a file is resolved"),
    ):
        (folder / "model.yaml").write_text(text)
        with pytest.raises(UserError, match=sentence):
            betasigma.load(folder)
    (folder / "model.yaml").write_text(header)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        betasigma.load(folder)
