"""What ``scripts/import.py`` does: turn a published model into a run directory.

Afterwards it is a run like any other: sampled, measured and loaded by its directory.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from betasigma.commands.assemble import make_denoiser
from betasigma.commands.checks import check_composition
from betasigma.commands.config import parsed
from betasigma.commands.convert_edm import convert_edm
from betasigma.config_tree import conf_directory
from betasigma.data import catalog
from betasigma.display import Display
from betasigma.errors import UserError
from betasigma.options import DataFacts
from betasigma.options.apps import Import, Train
from betasigma.options.base import dump, typed
from betasigma.options.composition import numbered
from betasigma.published import FORMATS
from betasigma.published.model_format import ModelFormat, PublishedModel, Settings
from betasigma.published.weight_file import WeightFile, open_weights, refuse_code
from betasigma.runs.checkpoint import AVERAGED, HEADER, save
from betasigma.runs.directory import CONFIG, ENVIRONMENT, OUTPUTS, describe_environment
from betasigma.runs.files import write_json, write_text
from betasigma.runs.header import CHECKPOINTS, FORMAT, LAST
from betasigma.runs.portable import is_portable
from betasigma.runs.start import Start
from betasigma.version import VERSION

ORIGIN = "origin.json"
"""File of a run directory that says where its weights come from; so does the header."""

IMPORTED = "imported"
"""Folder of ``outputs`` for models that were named by ``run=…`` without being imported before."""

LARGEST = 4096
"""A size in a network's config may always be this large; beyond, some tensor must be."""


class Readable(NamedTuple):
    """A published model that can become a run."""

    model: PublishedModel
    config: dict[str, Any]
    """Of a training run."""
    origin: dict[str, Any]
    """Where the weights come from."""
    value_range: tuple[float, float]


def import_model(config: DictConfig, start: Start) -> None:
    """Write the run directory of a published model, or the plain tensors of a pickle."""
    _, asked = parsed(config, Import)
    display = Display()
    if asked.convert is not None:
        written = convert_edm(Path(asked.source), Path(str(asked.code)), start.directory)
        display.line(f"{written}: plain tensors")
        display.line("next:")
        display.line(f"  {start.command('import', f'from={written}')}")
        return
    readable = read_published(asked)
    write_run(readable, start.directory, start.overrides)
    describe(readable, display)
    display.line(f"run directory {start.directory}")
    display.line("next:")
    display.line(f"  {start.command('sample', f'run={start.directory}', 'n=16')}")


def describe(readable: Readable, display: Display) -> None:
    """Say what a model was read as."""
    origin, model = readable.origin, readable.model
    parameters = sum(weight.numel() for weight in model.weights.values())
    shape = "×".join(map(str, model.sample_shape))
    named = f", {origin['published']}" if origin["published"] else ""
    display.line(f"{origin['file']}: {origin['format']}{named}, {parameters:,} parameters, {shape}")
    schedule, sampler = readable.config["schedule"], readable.config["sampler"]
    noise = schedule["_target_"].rpartition(".")[2]
    levels = schedule.get("steps", schedule.get("levels"))
    drawn = sampler["_target_"].rpartition(".")[2]
    chosen = [f"{key}={typed(sampler[key])}" for key in ("variance", "clip") if key in sampler]
    display.line(f"noise: {noise}, {levels} levels; sampler: {' '.join([drawn, *chosen])}")
    for note in model.notes:
        display.line(note)


def read_published(asked: Import, source: WeightFile | None = None) -> Readable:
    """Read and check a published model, all of it before anything is written."""
    if source is None:
        source = open_weights(Path(asked.source))
    form = _format(source, asked.format)
    settings = form.settings(source, asked.published, asked.flags or {})
    try:
        model = form.convert(source, settings)
    except UserError:
        raise
    except Exception as error:  # what does not fit depends on what a stranger wrote
        raise UserError(
            f"{source.named} has tensors or settings that {form.name} does not write "
            f"({type(error).__name__}: {error})"
        ) from None
    config = dump(_options(model, settings.get("data"), asked, source))
    low, high = config["model"]["value_range"]
    _check_weights(model, config, (low, high), source)
    origin = {
        "format": form.name,
        "published": asked.published or form.published_name(source),
        "file": str(source.path),
        "sha256": _digest(source.files),
        "flags": {key: value for key, value in settings.items() if key in form.defaults},
        "code": form.origin,
        "licence": settings.get("licence", form.licence),
    }
    return Readable(model, config, origin, (low, high))


def write_run(readable: Readable, directory: Path, overrides: list[str]) -> None:
    """Write config, origin and checkpoint of a model into a new run directory."""
    model, config = readable.model, readable.config
    write_text(directory / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
    write_json(directory / ENVIRONMENT, describe_environment(overrides))
    write_json(directory / ORIGIN, readable.origin)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "step": model.step,
        "seed": config["seed"],
        "value_range": list(readable.value_range),
        "sample_shape": list(model.sample_shape),
        "num_classes": config["network"].get("num_classes", 0),
        "plugins": {},
        "config": config,
        "origin": readable.origin,
    }
    weights = {f"{AVERAGED}network.{name}": value for name, value in model.weights.items()}
    save({"state_dict": weights, HEADER: header}, directory / CHECKPOINTS / LAST)


def imported_run(path: Path, key: str, display: Display) -> Path | None:
    """The run directory of a published model that was named where a run is expected.

    It is written below ``outputs/imported`` at the first time, under a name that holds the digest
    of the file and of the settings beside it.

    Returns:
        ``None`` where the file is of no known format.
    """
    if path.is_file():
        refuse_code(path, key)
    try:
        source = open_weights(path, key)
        _format(source, None)
    except UserError:
        return None
    told = json.dumps([_digest(source.files), source.settings], sort_keys=True)
    identity = hashlib.sha256(told.encode()).hexdigest()
    directory = OUTPUTS / IMPORTED / f"{plain_name(path)}_{identity[:8]}"
    if not (directory / CHECKPOINTS / LAST).is_file():
        try:
            readable = read_published(Import.parse({"from": str(path)}), source)
        except UserError as error:
            words = ("betasigma", "import", f"from={path}", f"to={OUTPUTS}/{plain_name(path)}")
            command = shlex.join(words)
            raise UserError(
                f"{error}; {command} takes what you say of it, and makes a run directory"
            ) from None
        write_run(readable, directory, [f"{key}={path}"])
        describe(readable, display)
    display.line(f"{key}={path} is imported: {key}={directory}")
    return directory


def _format(source: WeightFile, name: str | None) -> ModelFormat:
    known = {form.name: form for form in FORMATS}
    if name is not None:
        if name not in known:
            raise UserError(f"format={name} is not one of {', '.join(known)}")
        return known[name]
    for form in FORMATS:
        if form.detect(source):
            return form
    if is_portable(source.files[0]):
        raise UserError(
            f"{source.named} is a model that this package has exported, which needs no import: "
            f"give run={source.path} wherever a run is taken"
        )
    raise UserError(
        f"{source.named} has weights of no known code ({', '.join(known)}); a diffusers model "
        f"is recognised by its folder with config.json"
    )


def _options(
    model: PublishedModel, trained_on: str | None, asked: Import, source: WeightFile
) -> Train:
    """The config of a run, with this package's defaults for what is only about training."""
    channels, height, width = model.sample_shape
    name = asked.data.name or trained_on or "image_folder"
    data = {
        "_target_": "betasigma.data.datamodule.ImageDataModule",
        **_data_config(name),
        "name": name,
    }
    if asked.data.root is not None:
        data["root"] = asked.data.root
    if catalog.describe(name).size != height or width != height:
        data["image_size"] = height if width == height else [height, width]
    if name == "image_folder":
        data["channels"] = channels
    shape = catalog.sample_shape(name, data.get("image_size"), data.get("channels"))
    if shape != model.sample_shape:
        raise UserError(
            f"data.name={name} has images of shape {shape}, and {source.named} is of images of "
            f"shape {model.sample_shape}"
        )
    options = Train.parse(
        {
            "name": plain_name(source.path),
            "steps": max(model.step, 1),
            "data": data,
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 2e-4},
            **model.config,
            "model": {
                "_target_": "betasigma.modules.DDPM",
                "name": "ddpm",
                "family": "ddpm",
                **model.config.get("model", {}),
            },
        }
    )
    classes = options.network.num_classes
    check_composition(options, DataFacts(name, shape, lambda: numbered(classes)))
    return options


def _data_config(name: str) -> Settings:
    """What the config of a data set says of it: how CelebA is cropped, say."""
    file = conf_directory() / "data" / f"{name}.yaml"
    if not file.is_file():
        return {}
    content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    return dict(content["data"])


def plain_name(path: Path) -> str:
    """The name of a file as that of a run, which has letters, digits and ``_.+-``."""
    name = "".join(c if c.isalnum() or c in "_.+-" else "_" for c in path.resolve().stem)
    return name or IMPORTED


def _check_weights(
    model: PublishedModel,
    config: dict[str, Any],
    value_range: tuple[float, float],
    source: WeightFile,
) -> None:
    """Compare names and shapes with those of the network that the settings describe, which takes no
    memory for that.
    """
    weights = model.weights
    sizes = [size for weight in weights.values() for size in weight.shape]
    most = max([LARGEST, len(weights), *sizes])
    for key, value in config["network"].items():
        members = value if isinstance(value, list) else [value]
        numbers = [m for m in members if isinstance(m, int | float)]
        if len(members) > most or max(numbers, default=0) > most:
            raise UserError(f"{source.named} has network.{key}={value}, which no tensor in it fits")
    with torch.device("meta"):
        network = make_denoiser(config, model.sample_shape, value_range).network
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in [*expected, *found]:
        ours, theirs = expected.get(name), found.get(name)
        if ours != theirs:
            raise UserError(
                f"{source.named} does not fit its settings: {name} has shape "
                f"{theirs or 'nothing'} in the file, and {ours or 'nothing'} by its settings"
            )
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"{source.named} has weights that are not finite: {name}")


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()
