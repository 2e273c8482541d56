"""What ``scripts/export.py`` does: write a trained model in a format of other tools."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig

from betasigma.commands.config import parsed, saved_header
from betasigma.commands.load import Loaded, load_run
from betasigma.denoiser import Denoiser
from betasigma.display import Display
from betasigma.errors import UserError
from betasigma.exports import graphs
from betasigma.exports.diffusers_folder import INDEX, WEIGHTS_FILE, pipeline_folder, schedule_of
from betasigma.options.apps import Export, Target
from betasigma.options.base import parse_component
from betasigma.runs.directory import ENVIRONMENT
from betasigma.runs.files import new_folder, read_json, write_json, write_text
from betasigma.runs.header import checkpoint_path
from betasigma.runs.portable import MEAN, VARIANCE, write_portable
from betasigma.runs.record import Record
from betasigma.runs.start import Start

UNKNOWN = "unknown"
"""Licence of a model of which nobody has said it."""

PROGRAM, ONNX, LEVELS = "model.pt2", "model.onnx", "levels.json"
"""Files of the graphs."""

CLOSE = 1e-4
"""Largest difference of an exported model that is no fault, relative to its largest number."""


class Written(NamedTuple):
    """What an export has written."""

    use: str
    """Code that loads it, in which FOLDER is where it lies."""
    tags: list[str]
    notes: list[str]


def export(config: DictConfig, start: Start) -> None:
    """Write the model of a run or a checkpoint into a new folder, whole or not at all."""
    content = parsed(config, Export)[0]
    display = Display()
    loaded = load_run(content["run"])
    denoiser = loaded.denoiser
    if not isinstance(denoiser, Denoiser):
        raise UserError(f"run={content['run']} has an oracle, which has no weights to export")
    to: Target = content["to"]
    folder = Path(content["out"]) if content["out"] is not None else start.directory / to
    with new_folder(folder) as partial:
        written = WRITERS[to](partial, denoiser, loaded, content["run"])
        write_text(partial / "README.md", _card(content, loaded, written))
    for note in written.notes:
        display.line(note)
    display.line(f"written {folder}")
    display.line("use:")
    for line in written.use.replace("FOLDER", str(folder)).splitlines():
        display.line(f"  {line}")


def _to_diffusers(folder: Path, denoiser: Denoiser, loaded: Loaded, run: str) -> Written:
    from safetensors.torch import save_file

    found = pipeline_folder(denoiser, parse_component("sampler", loaded.config["sampler"]))
    for name, file in found.files.items():
        write_json(folder / name, file)
    save_file(found.weights, folder / "unet" / WEIGHTS_FILE, {"format": "pt"})
    kind = found.files[INDEX]["_class_name"]
    # the deprecated one is found by DiffusionPipeline alone
    kind = kind if kind == "DDPMPipeline" else "DiffusionPipeline"
    use = (
        f"from diffusers import {kind}\n\n"
        f'pipeline = {kind}.from_pretrained("FOLDER")\n'
        f"images = pipeline(batch_size=4, num_inference_steps={found.steps}).images"
    )
    return Written(use, ["diffusers"], found.notes)


def _to_safetensors(folder: Path, denoiser: Denoiser, loaded: Loaded, run: str) -> Written:
    tensors = dict(denoiser.state_dict())
    if denoiser.moments is not None:
        tensors |= {MEAN: denoiser.moments.mean, VARIANCE: denoiser.moments.variance}
    write_portable(folder, tensors, saved_header(run))
    use = (
        "import betasigma\n\n"
        'denoiser, sampler = betasigma.load("FOLDER")\n'
        "images = sampler.sample(denoiser, 64, seed=0).x"
    )
    return Written(use, ["betasigma"], [])


def _to_program(folder: Path, denoiser: Denoiser, loaded: Loaded, run: str) -> Written:
    off = graphs.write_program(denoiser, folder / PROGRAM)
    labels = ", labels=labels" if denoiser.num_classes else ""
    use = (
        "import torch\n\n"
        f'model = torch.export.load("FOLDER/{PROGRAM}").module()\n'
        f"x0, eps = model(x_t=x_t, level=level{labels})"
    )
    return _graph(folder, denoiser, off, use, "pytorch")


def _to_onnx(folder: Path, denoiser: Denoiser, loaded: Loaded, run: str) -> Written:
    off = graphs.write_onnx(denoiser, folder / ONNX)
    labels = ', "labels": labels' if denoiser.num_classes else ""
    use = (
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("FOLDER/{ONNX}")\n'
        f'x0, eps = session.run(None, {{"x_t": x_t, "level": level{labels}}})'
    )
    return _graph(folder, denoiser, off, use, "onnx")


def _graph(folder: Path, denoiser: Denoiser, off: float | None, use: str, tag: str) -> Written:
    """Write α and σ of the levels beside a graph; refuse one that came out as another model."""
    if off is not None and not off <= CLOSE:
        raise UserError(
            f"the exported model differs from the run's by {off:.2g} of its largest number; "
            f"nothing was kept"
        )
    write_json(folder / LEVELS, schedule_of(denoiser.schedule))
    use += f"  # level 0 … {denoiser.schedule.levels - 1}, rising with the noise: {LEVELS}"
    note = "not compared: onnxruntime is not installed"
    if off is not None:
        note = f"it differs from the run's model by at most {off:.1g} of its largest number"
    return Written(use, [tag], [note])


WRITERS: dict[Target, Callable[[Path, Denoiser, Loaded, str], Written]] = {
    "diffusers": _to_diffusers,
    "safetensors": _to_safetensors,
    "torch_export": _to_program,
    "onnx": _to_onnx,
}


def _card(content: dict[str, Any], loaded: Loaded, written: Written) -> str:
    config, denoiser = loaded.config, loaded.denoiser
    header = saved_header(content["run"])
    origin = header.get("origin") or {}
    licence = content["licence"] or origin.get("licence") or UNKNOWN
    directory = checkpoint_path(content["run"]).parents[1]
    command = read_json(directory / ENVIRONMENT).get("command")
    parameters = sum(p.numel() for p in denoiser.parameters())
    facts = {
        "family": str(config["model"].get("family") or config["model"]["name"]),
        "network": f"{config['network']['_target_'].rpartition('.')[2]}, {parameters:,} parameters",
        "schedule": f"{config['schedule']['_target_'].rpartition('.')[2]}, "
        f"{denoiser.schedule.levels} levels",
        "data": str(config["data"]["name"]),
        "shape": "×".join(map(str, denoiser.sample_shape)),
        "value range": f"[{denoiser.value_range[0]:g}, {denoiser.value_range[1]:g}]",
        "weights": f"averaged, after {loaded.step:,} steps",
        "sampler": config["sampler"]["_target_"].rpartition(".")[2],
        "licence": licence,
        "command": shlex.join(map(str, command)) if isinstance(command, list) else UNKNOWN,
        "written by": f"betasigma {header['version']}",
    }
    if origin:
        facts["from"] = f"{origin.get('published') or origin.get('format')}, {origin.get('code')}"
    name = config["name"] if content["name"] is None else content["name"]
    return model_card(name, facts, _figures(directory), written.use, [*written.tags, "diffusion"])


def _figures(directory: Path) -> list[dict[str, str]]:
    """Last value of each metric of samples, and of each likelihood, that the run has measured."""
    record = Record.of(directory)
    rows = record.rows() if record.path.is_file() else []
    last = {row["metric"]: row for row in rows if row.get("sampler")}
    return [
        {
            "metric": metric.partition("/")[2],
            "value": f"{float(row['value']):.4g}",
            "n": row["n"],
            "NFE": row["nfe"],
            "sampler": row["sampler"],
        }
        for metric, row in last.items()
    ]


def model_card(
    name: str,
    facts: Mapping[str, str],
    figures: Sequence[Mapping[str, str]],
    use: str,
    tags: Sequence[str],
) -> str:
    """README.md of an exported model: Markdown with the front matter that hubs read."""
    front = {
        "license": facts["licence"].lower(),
        "library_name": tags[0],
        "tags": list(tags),
        "datasets": [facts["data"]],
    }
    parts = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {name}",
        "",
        *_table([{"": key, " ": value} for key, value in facts.items()]),
        "",
        "## Figures",
        "",
        *(_table(figures) if figures else ["Nothing was measured of it."]),
        "",
        "## Use",
        "",
        "```python",
        use.strip(),
        "```",
        "",
    ]
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Markdown rows of one set of keys."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in rows)]
    shown = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return ["| " + " | ".join(line) + " |" for line in shown]
