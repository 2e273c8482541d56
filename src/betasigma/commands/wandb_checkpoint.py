"""Checkpoints that Weights & Biases keeps: ``run=wandb:ENTITY/PROJECT/RUN`` where a run is taken.

A checkpoint from there is a stranger's file like any other: it is fetched, never unpacked or run,
and what reads it checks it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from betasigma.commands.sync import connect
from betasigma.errors import UserError, first_line
from betasigma.runs.directory import cache_folder
from betasigma.runs.files import replace_file
from betasigma.training.tracking import CHECKPOINT, artifact_name

KEYS = ("run", "init", "init.run")
"""Keys whose values may name such a checkpoint."""

NAME = re.compile(
    r"wandb:(?P<entity>[\w.-]+)/(?P<project>[\w.-]+)/(?P<run>[\w-]+)(:(?P<which>[\w.-]+))?"
)
SECONDS_TO_ANSWER = 12.0
ROOM = 2**26
"""Bytes that stay free on the disk."""


def with_fetched(word: str) -> str:
    """Fetch what ``key=wandb:…`` names, and put its path there."""
    key, _, value = word.partition("=")
    if key not in KEYS or "wandb:" not in value:
        return word
    put = NAME.sub(lambda found: str(fetch(**found.groupdict())), value)
    if "wandb:" in put:
        raise UserError(
            f"{word} names no run: write {key}=wandb:ENTITY/PROJECT/RUN, the run by its id"
        )
    return f"{key}={put}"


def fetch_named(name: str) -> Path:
    """Fetch the checkpoint that ``wandb:ENTITY/PROJECT/RUN`` names."""
    found = NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{name} names no run: write wandb:ENTITY/PROJECT/RUN, the run by its id")
    return fetch(**found.groupdict())


def fetch(entity: str, project: str, run: str, which: str | None = None) -> Path:
    """Fetch the checkpoint of a run into the cache, unless it is there already."""
    asked = f"wandb:{entity}/{project}/{run}" + (f":{which}" if which else "")
    from wandb.errors import CommError

    api = connect(SECONDS_TO_ANSWER)
    name, reason, artifact = f"{entity}/{project}/{artifact_name(run)}", "", None
    for alias in [which] if which else ["best", "latest"]:
        try:
            artifact = artifact or api.artifact(f"{name}:{alias}")
        except (CommError, ValueError) as error:
            reason = first_line(error)
    if artifact is None:
        raise UserError(
            f"{asked} has no checkpoint ({reason}); logger.artifacts=best keeps a run's there"
        )
    entries: dict[str, Any] = artifact.manifest.entries
    entry = entries.get(CHECKPOINT)
    if list(entries) != [CHECKPOINT] or entry is None or entry.ref is not None:
        raise UserError(f"{asked} is something else than one {CHECKPOINT}, and was not fetched")
    folder = cache_folder() / "wandb"
    target = folder / f"{run}-{re.sub(r'[^0-9a-zA-Z]', '', artifact.digest)[:32]}.ckpt"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free - ROOM
    if not isinstance(entry.size, int) or not 0 < entry.size <= free:
        raise UserError(f"{asked} has {entry.size} bytes, and {folder} has {free:,} for it")
    with replace_file(target) as partial:
        own = partial.with_suffix(".folder")
        try:
            path = artifact.get_entry(CHECKPOINT).download(root=str(own), skip_cache=True)
            if Path(path).stat().st_size != entry.size:
                raise ValueError("it arrived cut short")
            shutil.move(path, partial)
        except Exception as error:  # of whatever kind
            raise UserError(f"{asked} could not be fetched: {first_line(error)}") from None
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return target
