"""``scripts/sample.py`` into folders and films; pictures and arrays are in ``test_scripts.py``."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Outcome, launch
from PIL import Image

import betasigma
from betasigma.commands.trajectory import seen
from betasigma.oracles import GaussianMixture
from betasigma.samplers import DDIM, Ancestral
from betasigma.schedules import geometric, linear


def done(*words: str) -> Outcome:
    outcome = launch("sample", "hardware.precision=32", *words)
    assert outcome.status == 0, outcome.err
    return outcome


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def expected(run: Path, indices: list[int], seed: int) -> np.ndarray:
    denoiser, sampler = betasigma.load(run)
    x = sampler.sample(denoiser, indices=indices, seed=seed).x
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[:, 0].numpy()


def test_a_folder_has_a_png_a_sample_by_seed_and_index(here: Path, ddpm_run: Path) -> None:
    words = (f"run={ddpm_run}", "save=folder", "out=drawn", "batch_size=2")
    out = done(*words, "seeds=[0,7]", "indices=[3,20]").out
    assert "4 samples by ddim, 2 network evaluations each\nimages" in out
    names = ["samples.json", *(f"seed{s}_{i:06d}.png" for s in (0, 7) for i in (3, 20))]
    assert sorted(path.name for path in Path("drawn").iterdir()) == names
    for seed in (0, 7):
        for index, image in zip((3, 20), expected(ddpm_run, [3, 20], seed), strict=True):
            assert np.array_equal(pixels(Path(f"drawn/seed{seed}_{index:06d}.png")), image)


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_command_that_is_stopped_says_by_what(
    here: Path,
    ddpm_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    word: str,
) -> None:
    monkeypatch.setattr(DDIM, "sample", lambda *_, **__: signal.raise_signal(number))
    outcome = launch("sample", f"run={ddpm_run}", "n=3")
    assert outcome.status == 128 + number
    assert outcome.err.splitlines()[-1] == f"stopped by {word}"


def test_a_folder_is_filled_up(here: Path, ddpm_run: Path) -> None:
    words = (f"run={ddpm_run}", "save=folder", "out=drawn")
    done(*words, "n=3")
    kept = Path("drawn/seed0_000001.png")
    before = kept.stat().st_mtime_ns
    Path("drawn/seed0_000002.png").unlink()  # as if the command had been stopped before it
    out = done(*words, "indices=0-3").out
    assert "2 samples by ddim, 2 network evaluations each; 2 were there already" in out
    assert kept.stat().st_mtime_ns == before
    for index, image in enumerate(expected(ddpm_run, [0, 1, 2, 3], 0)):
        assert np.array_equal(pixels(Path(f"drawn/seed0_{index:06d}.png")), image)
    told = [json.loads(path.read_text()) for path in here.glob("outputs/*_sample_*/samples.json")]
    found = sorted((each["n"], each["drawn"], each["indices"]) for each in told)
    assert found == [(3, 3, None), (4, 2, "0-3")]
    assert "0 samples by ddim" in done(*words, "n=4").out


def test_a_folder_of_other_samples_is_left_alone(
    here: Path, ddpm_run: Path, ncsn_run: Path
) -> None:
    done(f"run={ddpm_run}", "save=folder", "out=drawn", "n=1", "hardware.precision=32")
    other = launch("sample", f"run={ddpm_run}", "save=folder", "out=drawn", "sampler=heun")
    assert other.err.startswith("error: out=drawn holds samples of sampler=ddim, and these would")
    other = launch(
        "sample", f"run={ncsn_run}", "save=folder", "out=drawn", "sampler=ddim", "sampler.steps=2"
    )
    assert "out=drawn holds samples of weights=" in other.err
    words = ("save=folder", "out=drawn", "n=1", "hardware.precision=bf16")
    other = launch("sample", f"run={ddpm_run}", *words)
    assert "holds samples of precision=torch.float32, and these would be of precision=" in other.err
    Path("letters").mkdir()
    Path("letters/a.txt").write_text("a")
    other = launch("sample", f"run={ddpm_run}", "save=folder", "out=letters")
    assert other.err == (
        "error: out=letters is not empty and holds no samples: give another folder\n"
    )
    other = launch("sample", f"run={ddpm_run}", "save=folder", "out=letters/a.txt/drawn")
    assert other.err == "error: out=letters/a.txt/drawn cannot be made: letters/a.txt is a file\n"
    assert len(list(Path("drawn").iterdir())) == 2
    Path("drawn/samples.json").write_text('{"n": ')
    other = launch("sample", f"run={ddpm_run}", "save=folder", "out=drawn", "n=1")
    assert other.err == "error: out: drawn/samples.json is damaged: give another folder\n"


def test_classes_get_sub_folders_and_a_label_belongs_to_its_index(
    here: Path, labelled_run: Path
) -> None:
    words = (f"run={labelled_run}", "save=folder", "subfolders=true", "out=drawn", "labels=[7,1]")
    done(*words, "indices=[0,1,5]")
    found = {str(path.relative_to("drawn")) for path in Path("drawn").rglob("*.png")}
    assert found == {"7/seed0_000000.png", "1/seed0_000001.png", "1/seed0_000005.png"}
    denoiser, sampler = betasigma.load(labelled_run)
    x = sampler.sample(denoiser, indices=[5], y=torch.tensor([1])).x
    image = ((x.clamp(-1, 1) + 1) * 127.5).round()[0, 0].numpy()
    assert np.array_equal(pixels(Path("drawn/1/seed0_000005.png")), image)
    done(f"run={labelled_run}", "save=folder", "out=every", "labels=all", "n=1")
    done(f"run={labelled_run}", "save=folder", "out=every", "n=2")  # all without saying so
    # the same in arrays, as evaluators take them
    done(f"run={labelled_run}", "save=npz", "labels=[7,1]", "indices=[5]", "hydra.run.dir=npz")
    with np.load("npz/samples.npz") as arrays:
        assert arrays["arr_1"].tolist() == [1]
        assert np.array_equal(arrays["arr_0"][0, ..., 0], image)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["out=a"], "out=a belongs to save=folder"),
        (["subfolders=true"], "subfolders=true belongs to save=folder"),
        (["save=folder", "subfolders=true"], "subfolders=true needs a model trained with class"),
        (["indices=[9223372036854775808]"], "indices[0]=9223372036854775808 must be below"),
        (["indices=[]"], "indices=[] must name at least one, at most 10,000,000, and none twice"),
        (["indices=[1,1]"], "indices=[1, 1] must name at least one"),
        (["seeds=3-1"], "seeds=3-1 must name at least one"),
        (["indices=0-99999999999"], "indices=0-99999999999 must name at least one, at most"),
        (["trajectory=avi"], "trajectory=avi must be 'gif', 'mp4' or 'png'"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(
    here: Path, ddpm_run: Path, words: list[str], sentence: str
) -> None:
    outcome = launch("sample", f"run={ddpm_run}", *words)
    assert outcome.status == 1
    assert outcome.err.startswith(f"error: {sentence}")
    assert outcome.err.count("\n") == 1
    assert not Path("outputs").exists()


# ---------------------------------------------------------------- trajectories


def test_a_film_begins_with_noise_and_ends_with_the_samples(here: Path, ddpm_run: Path) -> None:
    words = (f"run={ddpm_run}", "n=10", "sampler=ddim", "sampler.steps=5")
    done(*words, "trajectory=gif", "hydra.run.dir=film")
    with Image.open("film/trajectory.gif") as film:
        assert film.size == (3 * 34 + 2, 3 * 34 + 2)
        shown = 0
        for frame in range(film.n_frames):  # of frames that are alike, one is kept for longer
            film.seek(frame)
            shown += film.info["duration"]
        assert shown == 5 * 70 + 1500
        last = np.asarray(film.convert("L"))
    denoiser, _ = betasigma.load(ddpm_run)
    x = DDIM(steps=5).sample(denoiser, 8).x
    for place in range(8):
        tile = last[2 + 34 * (place // 3) :, 2 + 34 * (place % 3) :][:32:4, :32:4]
        image = ((x[place, 0].clamp(-1, 1) + 1) * 127.5).numpy()
        assert np.abs(tile - image).max() <= 2


def test_a_strip_has_a_row_a_sample(here: Path, ncsn_run: Path) -> None:
    done(f"run={ncsn_run}", "indices=[4,2]", "trajectory=png", "hydra.run.dir=strip")
    with Image.open("strip/trajectory.png") as strip:
        assert strip.size == (3 * 34 + 2, 2 * 34 + 2)  # the run's sampler takes 2 steps


@pytest.mark.parametrize("schedule", [linear(steps=40), geometric(20, 10.0, 0.05)])
def test_states_of_both_families_are_shown_at_the_contrast_of_data(schedule) -> None:
    """Noise on a ladder is no wider on the picture than DDPM's: as wide as data of unit variance
    on [−1, 1].
    """
    n = 300
    shape, value_range = (1, 2, 2), (-1.0, 1.0)
    oracle = GaussianMixture(
        np.ones(1), np.zeros((1, *shape)), 0.04 * np.eye(4)[None], schedule, value_range
    )
    states = seen(oracle, Ancestral(clip=False), range(n), 0, None, 5).double()
    assert states.shape == (5, n, *shape)
    assert states.dtype == torch.float64
    first = (states[0] - 127.5) / 127.5
    # of a normal number clipped to [-1, 1]
    assert first.std().item() == pytest.approx(0.7185, abs=0.03)
    x = Ancestral(clip=False).sample(oracle, n).x
    assert torch.equal(states[-1], ((x.clamp(-1, 1) + 1) * 127.5).round().double())


def test_mp4_is_read_back(here: Path, ddpm_run: Path) -> None:
    av = pytest.importorskip("av")
    done(f"run={ddpm_run}", "n=1", "trajectory=mp4", "hydra.run.dir=film")
    with av.open("film/trajectory.mp4") as film:
        frames = [frame.to_ndarray(format="gray") for frame in film.decode(video=0)]
    assert len(frames) == 3 + 1500 // 70
    assert frames[-1].shape == (32, 32)
    (image,) = expected(ddpm_run, [0], 0)
    assert np.abs(frames[-1][::4, ::4].astype(int) - image).mean() < 12


def test_mp4_without_its_package_is_refused(
    here: Path, ddpm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    outcome = launch("sample", f"run={ddpm_run}", "trajectory=mp4")
    assert outcome.err == "error: trajectory=mp4 needs the av package: pip install av\n"
