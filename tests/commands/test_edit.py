"""``scripts/edit.py``: what is typed, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import launch
from PIL import Image

import betasigma
from betasigma.data.datamodule import ImageDataModule
from betasigma.editing import complete, decode, encode, outside, vary
from betasigma.editing.known import hole_of
from betasigma.samplers import DDIM, Ancestral


def edited(*words: str) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Numbers and description of what ``edit.py`` made, and what it said."""
    outcome = launch("edit", "hardware.precision=32", *words)
    assert outcome.status == 0, outcome.err
    out = max(Path.cwd().glob("outputs/*_edit_*"), key=lambda path: path.stat().st_mtime_ns)
    with np.load(out / "edited.npz") as arrays, Image.open(out / "edited.png") as picture:
        told = json.loads((out / "edited.json").read_text())
        columns = len(told["columns"])
        # images of 8 pixels are enlarged to 32, with 2 pixels between
        assert picture.size[0] == 34 * columns + 2
        return dict(arrays), told, outcome.out


def digits(value_range: tuple[float, float], *numbers: int) -> torch.Tensor:
    data = ImageDataModule("digits", value_range=value_range)
    return data.from_uint8(data.tensor("test")[list(numbers)])


@pytest.mark.parametrize("family", [pytest.param("ddpm_run", marks=pytest.mark.slow), "ncsn_run"])
def test_an_image_of_either_family_comes_back_from_its_latent(
    here: Path, family: str, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(family)
    words = ("edit=invert", "edit.tolerance=1e-4", "indices=[5,1]")
    arrays, told, out = edited(f"run={run}", *words)
    denoiser, _ = betasigma.load(run)
    images = digits(denoiser.value_range, 5, 1)
    latents = encode(denoiser, images, tolerance=1e-4).x
    np.testing.assert_allclose(arrays["latents"], latents.numpy(), atol=1e-4)
    assert arrays["images"].shape == (2, 2, 1, 8, 8)
    low, high = denoiser.value_range
    expected = ((images - low) * 255 / (high - low)).round().numpy()
    assert np.array_equal(arrays["images"][:, 0], expected)
    error = told["rms"]["image and image of its latent"]
    assert 0 < error < 3e-3
    assert f"image of its latent: {error:.3g} of the value range" in out
    assert told["sampler"] is None


def test_paths_between_seeds_and_between_images(here: Path, ddpm_run: Path) -> None:
    run = f"run={ddpm_run}"
    arrays, told, _ = edited(run, "seeds=[3,8]", "edit.frames=4", "edit.tolerance=1e-3")
    assert arrays["images"].shape == (1, 4, 1, 8, 8)
    assert (told["seeds"], told["columns"]) == ([3, 8], ["0%", "33%", "67%", "100%"])
    denoiser, _ = betasigma.load(ddpm_run)
    ends = decode(denoiser, torch.from_numpy(arrays["latents"])[0]).x.clamp(-1, 1)
    found = arrays["images"][0, [0, 3]].astype(float) / 127.5 - 1
    assert np.abs(found - ends.numpy()).max() < 2 / 127.5

    Path("pair").mkdir()
    for name, number in (("b.png", 1), ("a.png", 5)):
        digit = ImageDataModule("digits").tensor("test")[number, 0]
        Image.fromarray(digit.numpy()).save(f"pair/{name}")
    arrays, told, out = edited(run, "images=pair", "edit.frames=2", "edit.tolerance=1e-4")
    assert "images and the ends of their paths" in out
    assert told["rms"]["images and the ends of their paths"] < 3e-3
    ends = ImageDataModule("digits").tensor("test")[[5, 1]].numpy().astype(int)
    assert np.abs(arrays["images"][0].astype(int) - ends).max() <= 1


def test_a_hole_is_painted_and_the_rest_kept(here: Path, ncsn_run: Path) -> None:
    words = ("edit=inpaint", "edit.hole=right", "sampler=ancestral", "sampler.steps=3", "n=2")
    arrays, told, out = edited(f"run={ncsn_run}", *words, "indices=[2]", "seed=5")
    denoiser, _ = betasigma.load(ncsn_run)
    images = digits(denoiser.value_range, 2).repeat_interleave(2, 0)
    hole = hole_of("right", (1, 8, 8))
    expected = complete(denoiser, Ancestral(steps=3), images, outside(hole), seed=5).x
    found = arrays["images"][0].astype(int)
    assert np.abs(found[2:] - (255 * expected.clamp(0, 1)).round().numpy()).max() <= 1
    assert np.array_equal(found[2:, ..., :4], found[:1, ..., :4].repeat(2, 0))
    assert (found[1, ..., 4:] == 0).all()
    assert (told["sampler"], told["nfe"]) == ("ancestral", 3)
    assert "edit.repeats=10, say, comes nearer to the exact law" in out
    _, told, out = edited(f"run={ncsn_run}", *words, "indices=[2]", "edit.repeats=2")
    assert told["nfe"] == 2 * 2 + 1
    assert "comes nearer" not in out
    words = ("edit=inpaint", "sampler=dpm_solver", "sampler.steps=2", "n=1", "indices=[2]")
    _, _, out = edited(f"run={ncsn_run}", *words)
    assert "sampler=predictor_corrector with edit.repeats=10, say, comes nearer" in out


def test_variations_and_labels(here: Path, labelled_run: Path) -> None:
    words = ("edit=vary", "edit.t=0.25", "sampler=ddim", "sampler.steps=4", "n=3")
    arrays, told, _ = edited(
        f"run={labelled_run}", *words, "indices=[0,1]", "labels=[4]", "guidance=2"
    )
    assert arrays["images"].shape == (2, 4, 1, 8, 8)
    assert (told["indices"], told["labels"], told["guidance"]) == ([0, 1], [4], 2)
    assert told["settings"].startswith("steps=4 ")
    denoiser, _ = betasigma.load(labelled_run)
    x0 = digits((-1, 1), 0, 1).repeat_interleave(3, 0)
    guided = betasigma.Guided(denoiser, 2.0)
    expected = vary(guided, DDIM(steps=4), x0, 0.25, y=torch.full((6,), 4)).x
    expected = ((expected.clamp(-1, 1) + 1) * 127.5).round().reshape(2, 3, 1, 8, 8)
    assert np.abs(arrays["images"][:, 1:].astype(int) - expected.numpy()).max() <= 1


def test_points_have_paths_too(here: Path) -> None:
    words = ("data=mixture", "model=oracle", "evaluation=none", "logger=none", "sampler=heun")
    trained = launch("train", *words, "training.num_samples=4")
    assert trained.status == 0, trained.err
    outcome = launch("edit", f"run={trained.run}", "seeds=[0,1]", "edit.frames=3")
    assert outcome.status == 0, outcome.err
    outcome = launch("edit", f"run={trained.run}", "edit=invert", "edit.tolerance=1e-3")
    assert outcome.status == 0, outcome.err
    assert "of 255" not in outcome.out  # points are no bytes
    assert "root mean square between point and point of its latent" in outcome.out
    assert "a row: point, point of its latent" in outcome.out
    outcome = launch("edit", f"run={trained.run}", "edit=vary", "indices=[100000]")
    assert "must be numbers of points, 0 to 9999" in outcome.err
    outcome = launch("edit", f"run={trained.run}", "edit=invert", f"images={here}")
    assert outcome.err.endswith(
        " does not fit this run, whose data are points: without it the test points of its data are "
        "taken\n"
    )
    outcome = launch("edit", f"run={trained.run}", "edit=inpaint")
    assert outcome.err == "error: edit=inpaint needs a model of images; this one's data are 2-d\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["edit=colourise"], "edit=colourise needs a model of colour images; this one's data have"),
        (["edit=vary", "edit.t=0.0001"], r"edit.t=0.0001 is not a time with noise: t is step/lev"),
        (["edit=inpaint", "sampler=adaptive_ode"], "sampler=AdaptiveODE chooses its steps by how"),
        (["edit=inpaint", "edit.repeats=2", "sampler=dpm_solver"], "edit.repeats=2 does not go"),
        (["edit=inpaint", "edit.hole=nowhere"], "edit.hole=nowhere is neither left, right, top"),
        (["seeds=[1]"], "edit=interpolate needs at least 2 seeds or images, not 1: give seeds"),
        (["images=nowhere"], "images=nowhere is not there: give a folder, a file or an array"),
        (["edit=invert", "indices=[360]"], "indices=[360] must be numbers of images, 0 to 359"),
        (["n=7"], "n=7 has no effect: this edit draws nothing"),
        (["indices=[0]"], "indices=[0] has no effect: this edit is of seeds"),
        (["edit=vary", "seeds=[1]"], "seeds=[1] has no effect: this edit is of images"),
        (["edit=invert", "sampler=ddim"], "sampler=ddim has no effect: this edit follows the"),
        (["labels=[1]"], "labels=[1] needs a model trained with class labels; this has none"),
        (["guidance=2"], "guidance=2 needs a model trained with network.num_classes and"),
        (["edit.frames=1"], "edit.frames=1 must be at least 2"),
        (["edit=invert", "edit.t=1"], "edit.t=1 does not fit the edit that was chosen; edit.t be"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    here: Path, ddpm_run: Path, words: list[str], sentence: str
) -> None:
    outcome = launch("edit", f"run={ddpm_run}", *words)
    assert outcome.status == 1
    assert outcome.err.startswith(f"error: {sentence}")
    assert outcome.err.count("\n") == 1


@pytest.mark.slow
def test_a_model_that_always_had_labels_is_given_some(here: Path, train) -> None:
    run = train("network.num_classes=10").run
    outcome = launch("edit", f"run={run}", "edit=vary")
    assert "was trained with a label on every image: give labels=[…]" in outcome.err
    assert not list(here.glob("outputs/*_edit_*"))
