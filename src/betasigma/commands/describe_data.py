"""Say what the data were found to be, and keep it in the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from betasigma.data.datamodule import SPLITS, ImageDataModule
from betasigma.data.hub import HubTable
from betasigma.data.listing import Listing
from betasigma.display import Display, warn
from betasigma.errors import counted, few
from betasigma.options.data import Split
from betasigma.runs.directory import DATA, short
from betasigma.runs.files import read_json, write_json


def describe_data(display: Display, data: ImageDataModule) -> dict[str, Any]:
    """Print splits, counts, classes and what was left out, and return it."""
    found = data.describe()
    sizes = {split: found[split]["examples"] for split in SPLITS}
    files = data.files
    for line in files.sentences() if files is not None else ():
        display.line(f"data: {line}")
    listed = {}
    if isinstance(files, Listing | HubTable):
        listed = {split: len(files.split(split).names) for split in SPLITS}
    if listed != sizes:
        display.line(f"data: {sizes['train']:,} examples to train on, {sizes['test']:,} to test")
    classes = found["classes"]
    if classes:
        named = [f"{c['number']} {c['name']} {c['train']}+{c['test']}" for c in classes]
        display.line(f"data: {counted(len(named), 'class')} (to train + to test): {few(named)}")
    unknown = [c["name"] for c in classes if not c["train"]]
    if unknown:
        warn(f"no training image is of class {few(unknown)}")
    return found


def keep_description(run: Path, found: dict[str, Any]) -> None:
    """Write the description to a run directory, and warn if the data are others than before."""
    path = run / DATA
    earlier = read_json(path)
    changed = changed_splits(earlier, found)
    for split in changed:
        before, now = earlier[split]["examples"], found[split]["examples"]
        warn(
            f"the {split} split has changed since this run was last started ({before:,} examples, "
            f"now {now:,}): it does not end as one that was never stopped would, and may have been "
            f"trained on images that are tested now"
        )
    history = [*earlier.pop("before", []), earlier] if changed else earlier.get("before", [])
    write_json(path, {**found, "before": history})


def warn_of_other_splits(run: Path, found: dict[str, Any]) -> None:
    """Warn where the data that a run is measured on are not split as those that it has seen."""
    for split in changed_splits(read_json(run / DATA), found):
        warn(
            f"the {split} split is not the one that {short(run)} has recorded in {DATA}: it may "
            f"have been trained on images that are tested here"
        )


def changed_splits(earlier: dict[str, Any], found: dict[str, Any]) -> list[Split]:
    """Splits that have other examples than before, or in another order."""
    return [split for split in SPLITS if earlier.get(split, found[split]) != found[split]]
