"""Published weights: recorded outputs, every command on an imported model, what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from equality import CLOSE, images, output, random_weights, randomised
from launching import launch
from pipelines import save_pipeline
from record import CASES, RECORDED, probes
from safetensors.torch import save_file

import betasigma
from betasigma.commands.config import saved_header
from betasigma.commands.import_model import imported_run, read_published
from betasigma.commands.load import Loaded
from betasigma.denoiser import Denoiser
from betasigma.display import Display
from betasigma.errors import UserError
from betasigma.options.apps import Import
from betasigma.published import FORMATS
from betasigma.runs.header import read_header


def recorded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text("utf-8"))
    return content


def written(name: str, folder: Path) -> Path:
    """The file that the public code would have written of the recorded model."""
    weights = random_weights(recorded(name)["shapes"])
    content: dict[str, Any] = weights
    if name.startswith("score_sde"):
        content = {
            "model": {f"module.{key}": torch.zeros_like(w) for key, w in weights.items()},
            "ema": {"decay": 0.9999, "num_updates": 1, "shadow_params": list(weights.values())},
            "optimizer": {},
            "step": 7,
        }
    torch.save(content, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_that_public_code_gave(
    name: str, tmp_path: Path, imported: Callable[..., Loaded]
) -> None:
    known = recorded(name)
    loaded = imported(written(name, tmp_path), flags=known["flags"])
    denoiser = loaded.denoiser
    assert isinstance(denoiser, Denoiser)
    assert loaded.step == (7 if name.startswith("score_sde") else 0)
    x = images(2, denoiser.sample_shape)
    y = torch.tensor(known["labels"]) if known["labels"] else None
    first, *_, last = (torch.tensor(row["at"]) for row in known["outputs"])
    assert float((first - last).abs().max()) > 0.01 * known["outputs"][0]["largest"]
    for row in known["outputs"]:
        found = output(denoiser, x, row["step"], y)
        missed = torch.tensor(probes(found)) - torch.tensor(row["at"])
        assert float(missed.abs().max()) < CLOSE * row["largest"]


# ---------------------------------------------------------------- an imported model is a run


@pytest.fixture(scope="module")
def digits_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of a small model of 8x8 greyscale images."""
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    randomised(model)
    folder = tmp_path_factory.mktemp("published") / "ddpm-digits"
    DDPMPipeline(model, DDPMScheduler(num_train_timesteps=20)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def imported_digits(digits_pipeline: Path) -> Path:
    """The run directory that it is imported to, not to be written to."""
    run = digits_pipeline.parent / "run"
    done = launch("import", f"from={digits_pipeline}", f"to={run}", "data.name=digits")
    assert done.status == 0, done.err
    assert done.out.splitlines()[0].startswith(f"{digits_pipeline}: diffusers, ")
    return run


@pytest.fixture
def digits_run(imported_digits: Path, here: Path) -> str:
    """The same to be written to."""
    shutil.copytree(imported_digits, here / "outputs" / "digits")
    return "outputs/digits"


FEW = ("sampler.steps=3",)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ("ancestral", FEW),
        ("ddim", FEW),
        pytest.param("euler", FEW, marks=pytest.mark.slow),
        ("heun", FEW),
        pytest.param("dpm_solver", FEW, marks=pytest.mark.slow),
        pytest.param("predictor_corrector", FEW, marks=pytest.mark.slow),
        ("annealed_langevin", (*FEW, "sampler.inner_steps=1")),
        ("adaptive_ode", ("sampler.rtol=0.1", "sampler.atol=0.1")),
    ],
)
def test_every_sampler_draws_from_an_imported_model(
    sampler: str, words: tuple[str, ...], digits_run: str
) -> None:
    done = launch("sample", f"run={digits_run}", "n=2", f"sampler={sampler}", *words, "save=npz")
    assert done.status == 0, done.err


def test_it_is_measured_and_its_likelihood_bounded(digits_run: str) -> None:
    small = ["evaluation.metrics=[]", "likelihood=discrete_bound", "likelihood.n=2"]
    done = launch("evaluate", f"run={digits_run}", "error_curve=2", *small)
    assert done.status == 0, done.err
    assert "bits_per_dim" in (Path(digits_run) / "metrics.csv").read_text("utf-8")


def test_it_is_edited(digits_run: str) -> None:
    few = ["seeds=[0,1]", "edit.frames=2", "edit.tolerance=0.1"]
    done = launch("edit", f"run={digits_run}", "edit=interpolate", *few)
    assert done.status == 0, done.err


def test_its_origin_is_kept(digits_run: str, digits_pipeline: Path) -> None:
    origin = json.loads((Path(digits_run) / "origin.json").read_text("utf-8"))
    assert read_header(Path(digits_run) / "checkpoints" / "last.ckpt")["origin"] == origin
    assert origin["format"] == "diffusers"
    assert origin["licence"] == "Apache-2.0"
    assert origin["file"] == str(digits_pipeline)
    assert len(origin["sha256"]) == 64


def test_data_of_a_name_are_those_of_its_config(tmp_path: Path) -> None:
    save_pipeline(tmp_path, image_size=64)
    asked = {"from": str(tmp_path), "data": {"name": "celeba"}}
    data = read_published(Import.parse(asked)).config["data"]
    assert (data["crop"], data["image_size"], data["root"]) == ("center_140", 64, "data")
    asked["data"] = {"name": "mnist"}
    with pytest.raises(UserError, match=r"data\.name=mnist has images of shape \(1, 64, 64\)"):
        read_published(Import.parse(asked))


def test_a_published_model_stands_where_a_run_does(digits_pipeline: Path, here: Path) -> None:
    words = [f"run={digits_pipeline}", "n=2", "sampler=ddim", "sampler.steps=2"]
    first, again = launch("sample", *words), launch("sample", *words)
    assert (first.status, again.status) == (0, 0), first.err + again.err
    assert "ddpm-digits: diffusers" in first.out
    assert "ddpm-digits: diffusers" not in again.out
    (run,) = (here / "outputs" / "imported").iterdir()
    denoiser, _ = betasigma.load(digits_pipeline)
    ours, _ = betasigma.load(run)
    x = images(2, (1, 8, 8))
    assert torch.equal(denoiser(x, 0.5).eps, ours(x, 0.5).eps)


def test_a_published_model_that_leaves_something_open_is_no_run(here: Path) -> None:
    (here / "their models").mkdir()
    file = written("improved-diffusion", here / "their models")
    done = launch("sample", f"run='{file}'")
    assert done.status == 1
    assert done.err.startswith(f"error: run={file} is of improved-diffusion, whose files do not")
    assert f"betasigma import 'from={file}' to=outputs/model takes" in done.err
    assert not (here / "outputs").exists()


def test_flags_are_taken_as_typed(here: Path) -> None:
    name = "guided-diffusion"
    typed = " ".join(f"--{key} {value}" for key, value in recorded(name)["flags"].items())
    assert "--channel_mult 1,2" in typed
    done = launch("import", f"from={written(name, here)}", "to=outputs/adm", f"flags={typed}")
    assert done.status == 0, done.err
    again = launch("sample", "run=outputs/adm", "sampler=ddim", "guidance=2")
    assert again.status == 1
    assert "guidance=2 needs a model trained with" in again.err


def test_a_directory_in_use_is_refused(digits_run: str, digits_pipeline: Path) -> None:
    done = launch("import", f"from={digits_pipeline}", f"to={digits_run}")
    assert done.status == 1
    assert done.err.startswith(f"error: to={digits_run} is not empty")


# ---------------------------------------------------------------- what is refused


def refusal(path: Path, **asked: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_published(Import.parse({"from": str(path), **asked}))
    return str(caught.value)


class Foreign:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return open, ("executed", "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(zipped: bool, here: Path) -> None:
    torch.save({"w": Foreign()}, "evil.pt", _use_new_zipfile_serialization=zipped)
    assert "nothing in it was executed" in refusal(Path("evil.pt"))
    assert not Path("executed").exists()
    Path("plain.ckpt").write_bytes(pickle.dumps(Foreign()))
    assert "nothing in it was executed" in refusal(Path("plain.ckpt"))
    assert not Path("executed").exists()


def test_a_tensor_claims_no_more_than_its_file_holds(here: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, "honest.pt")
    claimed, larger = b"M" + (1000).to_bytes(2, "little"), b"J" + (2**31 - 1).to_bytes(4, "little")
    with zipfile.ZipFile("honest.pt") as honest, zipfile.ZipFile("liar.pt", "w") as liar:
        for name in honest.namelist():
            liar.writestr(name, honest.read(name).replace(claimed, larger))
    assert "or is damaged; nothing in it was executed" in refusal(Path("liar.pt"))
    with zipfile.ZipFile("honest.pt") as honest, zipfile.ZipFile("bomb.pt", "w") as bomb:
        for name in honest.namelist():
            bomb.writestr(name, honest.read(name), zipfile.ZIP_DEFLATED)
    assert "nothing in it was executed" in refusal(Path("bomb.pt"))


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    name = "pytorch_diffusion"
    file = written(name, tmp_path)
    torch.save({key: value.half() for key, value in torch.load(file).items()}, file)
    asked = Import.parse({"from": str(file), "flags": recorded(name)["flags"]})
    weights = read_published(asked).model.weights.values()
    assert {value.dtype for value in weights} == {torch.float32}


def test_old_files_are_read(tmp_path: Path, imported: Callable[..., Loaded]) -> None:
    name = "pytorch_diffusion"
    file = written(name, tmp_path)
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(file)
    assert imported(file, flags=recorded(name)["flags"]).denoiser.sample_shape == (3, 16, 16)


@pytest.mark.parametrize("detour", [b"", b"q\xff0h\xff"], ids=["plain", "by the memo"])
def test_an_old_file_that_claims_too_much_is_refused(tmp_path: Path, detour: bytes) -> None:
    """The number may be put aside and fetched again, so that another stands before its use."""
    file = written("pytorch_diffusion", tmp_path)
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    shown = next(n for n in (128 * 128, 32 * 32 * 9) if b"M" + n.to_bytes(2, "little") in content)
    small, huge = b"M" + shown.to_bytes(2, "little"), b"J" + (2**30).to_bytes(4, "little")
    file.write_bytes(content.replace(small + b"N", huge + detour + b"N"))
    assert "claims more numbers than it holds" in refusal(file)


def changed(name: str, folder: Path, **changes: Any) -> Path:
    file = written(name, folder)
    content = {**torch.load(file), **changes}
    torch.save({key: w for key, w in content.items() if w is not None}, file)
    return file


ENTRY, BIAS = "input_blocks.0.0.weight", "input_blocks.0.0.bias"


@pytest.mark.parametrize(
    ("changes", "flags", "sentence"),
    [
        ({BIAS: torch.full((32,), torch.nan)}, {}, "weights that are not finite: enter.bias"),
        ({BIAS: torch.zeros(32).long()}, {}, "has input_blocks.0.0.bias of torch.int64"),
        ({BIAS: torch.zeros(32).to_sparse()}, {}, "weights must be dense"),
        ({BIAS: torch.zeros(1).expand(10**12)}, {}, "are larger than the file"),
        (
            {f"{i}.weight": weight for i, weight in enumerate([torch.zeros(10**5)] * 1000)},
            {},
            "are larger than the file",
        ),
        ({BIAS: torch.zeros(31)}, {}, "enter.bias has shape (31,) in the file, and (32,)"),
        ({BIAS: None}, {}, "enter.bias has shape nothing in the file"),
        ({"more.weight": torch.zeros(1)}, {}, "1 tensor that its settings have no place for"),
        ({}, {"num_res_blocks": 2}, "has no "),
        ({}, {"num_res_blocks": 10**9}, "has no "),
        ({}, {"num_channels": 64}, "does not fit its settings"),
        ({}, {"num_heads": 3}, "flags.num_heads=3 does not divide an attention"),
        ({}, {"learn_sigma": False}, "does not fit its settings: leave.2.weight has shape (6,"),
        ({}, {"class_cond": True}, "has no label_emb.weight, which its settings ask for"),
        ({}, {"num_heads_upsample": 1}, "num_heads_upsample=1 must be num_heads"),
        ({}, {"noise_schedule": "quad"}, "noise_schedule=quad must be linear or cosine"),
        ({}, {"attention_resolutions": "5"}, "which its settings ask for"),
        ({}, {"attention_resolutions": "a"}, "attention_resolutions=a must be integers"),
        ({}, {"image_size": 48}, "image_size=48 has no channel_mult"),
        ({}, {"num_head": 3}, "is unknown to improved-diffusion, which from="),
        ({}, {"num_head": 3}, "is read as (format=… says another); did you mean num_heads?"),
        ({}, {"num_heads": "four"}, "flags.num_heads=four must be of type int"),
        ({}, {"num_heads": True}, "flags.num_heads=True must be of type int"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], flags: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    name = "improved-diffusion"
    file = changed(name, tmp_path, **changes)
    assert sentence in refusal(file, flags={**recorded(name)["flags"], **flags})


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("k", "has q, k and v of different shapes in an attention"),
        ("qkv", "attention.qkv.bias has shape (0,) in the file, and (192,)"),
    ],
)
def test_projections_without_biases_are_refused(names: str, sentence: str, tmp_path: Path) -> None:
    lacking = {f"mid.attn_1.{name}.bias": None for name in names}
    file = changed("pytorch_diffusion", tmp_path, **lacking)
    assert sentence in refusal(file, flags=recorded("pytorch_diffusion")["flags"])


def test_what_a_file_leaves_open_is_asked_for(tmp_path: Path) -> None:
    file = written("improved-diffusion", tmp_path)
    asked = refusal(file)
    assert "do not hold all of its settings" in asked
    assert "cifar10_uncond_50M_500K" in asked
    assert refusal(file, published="cifar10_uncond") == (
        "published=cifar10_uncond is not known; did you mean cifar10_uncond_50M_500K?"
    )
    assert "flags=--num_heads must be words" in refusal(file, flags="--num_heads")


def test_flags_are_taken_as_their_scripts_take_them(
    tmp_path: Path, imported: Callable[..., Loaded]
) -> None:
    name = "improved-diffusion"
    flags = recorded(name)["flags"]
    typed = " ".join(f"--{key} {value}" for key, value in flags.items())
    of_training = "--use_fp16 True --use_checkpoint False --batch_size 128 --diffusion_steps 500"
    file = written(name, tmp_path)
    config = imported(file, flags=f"{typed} {of_training}").config
    note = "told 2 times the number of each of 500 steps; guided-diffusion may write the same file"
    asked = Import.parse({"from": str(file), "flags": f"{typed} {of_training}"})
    assert note in read_published(asked).model.notes[0]
    assert config["network"]["heads"] == flags["num_heads"]
    assert config["network"]["attention"] == [8]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type=fourier in config.json"),
        ({"up_block_types": ["SkipUpBlock2D"] * 2}, "up_block_types=SkipUpBlock2D in config.json"),
        ({"act_fn": "gelu"}, "act_fn=gelu in config.json"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups=8 in config.json"),
        ({"sample_size": None}, "config.json has sample_size=None"),
        ({"block_out_channels": [8, 12]}, "the levels have 8, 12 channels"),
        ({"block_out_channels": [2**15, 2**15]}, "which no tensor in it fits"),
        ({"layers_per_block": 10**9}, "has no down_blocks"),
        ({"out_channels": 2}, "has out_channels=2 in config.json"),
        ({"block_out_channels": None}, "has tensors or settings that diffusers does not write"),
        ({"layers_per_block": {}}, "has tensors or settings that diffusers does not write"),
    ],
)
def test_settings_that_ours_lacks_are_refused(
    changes: dict[str, Any], sentence: str, digits_pipeline: Path, tmp_path: Path
) -> None:
    assert sentence in refusal(copy_with("unet/config.json", changes, digits_pipeline, tmp_path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"beta_schedule": "scaled_linear"},
            "beta_schedule=scaled_linear in scheduler_config.json",
        ),
        ({"prediction_type": "flow"}, "prediction_type=flow in scheduler_config.json"),
        ({"variance_type": "learned"}, "variance_type=learned in scheduler_config.json"),
        ({"trained_betas": [0.1] * 20}, "trained_betas=a list of 20 in scheduler_config.json"),
        ({"thresholding": True}, "thresholding=True in scheduler_config.json"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True in scheduler_config.json"),
        ({"clip_sample": True, "clip_sample_range": 2.0}, "clip_sample_range=2.0 in scheduler_con"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "is of diffusers' CMStochasticIterat"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "levels are not DDPM's: those of DD"),
        ({"beta_schedule": []}, "beta_schedule=a list of 0 in scheduler_config.json"),
        ({"num_train_timesteps": 10**12}, "steps=1000000000000"),
    ],
)
def test_schedulers_that_ours_lacks_are_refused(
    changes: dict[str, Any], sentence: str, digits_pipeline: Path, tmp_path: Path
) -> None:
    file = "scheduler/scheduler_config.json"
    assert sentence in refusal(copy_with(file, changes, digits_pipeline, tmp_path))


def copy_with(file: str, changes: dict[str, Any], pipeline: Path, folder: Path) -> Path:
    """The pipeline with another config."""
    for name in ("unet", "scheduler"):
        (folder / name).mkdir()
        for path in (pipeline / name).iterdir():
            (folder / name / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps({**content, **changes}), "utf-8")
    return folder


def test_a_file_of_another_code_than_was_said(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pt")
    for form in FORMATS:
        published = next(iter(form.published), None)
        assert refusal(tmp_path / "a.pt", format=form.name, published=published)


def test_other_settings_beside_the_same_weights_are_another_model(
    digits_pipeline: Path, tmp_path: Path, here: Path
) -> None:
    file = "scheduler/scheduler_config.json"
    folder = copy_with(file, {"clip_sample": True}, digits_pipeline, tmp_path)
    first = imported_run(folder, "run", Display(quiet=True))
    assert first == imported_run(folder, "run", Display(quiet=True))
    settings = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps({**settings, "clip_sample": False}), "utf-8")
    other = imported_run(folder, "run", Display(quiet=True))
    assert first is not None
    assert other is not None
    clips = [saved_header(str(run))["config"]["sampler"]["clip"] for run in (first, other)]
    assert clips == [True, False]


def test_attention_has_two_namings(digits_pipeline: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = "unet/diffusion_pytorch_model.safetensors"
    folder = copy_with("unet/config.json", {}, digits_pipeline, tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in load_file(folder / file).items():
        for new, former in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        renamed[name] = value
    assert any("proj_attn" in name for name in renamed)
    (folder / file).unlink()
    torch.save(renamed, folder / "unet" / "diffusion_pytorch_model.bin")
    now, then = (
        read_published(Import.parse({"from": str(path)})).model.weights
        for path in (digits_pipeline, folder)
    )
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in now)


INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def sharded(digits_pipeline: Path, tmp_path: Path) -> Path:
    """The same pipeline, with its weights in several files."""
    folder = tmp_path / "ddpm-digits"
    shutil.copytree(digits_pipeline / "scheduler", folder / "scheduler")
    model = UNet2DModel.from_pretrained(digits_pipeline / "unet")
    model.save_pretrained(folder / "unet", max_shard_size=20_000)
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    return folder


def test_weights_in_several_files_are_one_model(sharded: Path, digits_pipeline: Path) -> None:
    whole, parts = (
        read_published(Import.parse({"from": str(folder)})) for folder in (digits_pipeline, sharded)
    )
    assert parts.config == whole.config
    assert parts.model.weights.keys() == whole.model.weights.keys()
    for name, weight in parts.model.weights.items():
        torch.testing.assert_close(weight, whole.model.weights[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "named", ["../model.safetensors", "/etc/passwd", "", "gone.safetensors", "config.json", None]
)
def test_an_index_names_files_beside_it(sharded: Path, named: str | None) -> None:
    shutil.copy(next(sharded.glob("unet/*.safetensors")), sharded / "model.safetensors")
    content = {"weight_map": {"conv_in.weight": named} if named is not None else []}
    (sharded / "unet" / INDEX).write_text(json.dumps(content))
    assert f"{INDEX} must name .safetensors files beside it" in refusal(sharded)


def test_a_part_of_a_model_is_no_model(sharded: Path) -> None:
    index = json.loads((sharded / "unet" / INDEX).read_text())
    first = min(index["weight_map"].values())
    names = {name: file for name, file in index["weight_map"].items() if file == first}
    (sharded / "unet" / INDEX).write_text(json.dumps({"weight_map": names}))
    assert "from=" in refusal(sharded)
    (sharded / "unet" / INDEX).unlink()
    assert "has several files of weights" in refusal(sharded)


def test_weights_of_no_known_code_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "w.safetensors")
    assert "weights of no known code (diffusers, " in refusal(tmp_path / "w.safetensors")
    assert refusal(tmp_path / "w.safetensors", format="jax").startswith("format=jax is not one of")
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    assert "is not a whole safetensors file" in refusal(tmp_path / "w.safetensors")
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    (tmp_path / "w.safetensors").unlink()
    assert "has several files of weights (a.pt, b.pt)" in refusal(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "has no weights (.safetensors, " in refusal(tmp_path / "empty")
    assert "does not exist" in refusal(tmp_path / "nowhere")
