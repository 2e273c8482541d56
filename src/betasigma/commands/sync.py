"""What ``scripts/sync.py`` does: send runs that were logged offline to Weights & Biases.

The file of Weights & Biases of a run that was started once holds all of it, and is sent as it is.
Every other run is sent from its run directory: the values of ``metrics.csv`` and the pictures of
samples that the server lacks, as the continuation of what it has. So a run that was continued, each
of whose files counts from 0, is one history there; so is one that was killed before its file was
whole, one that was online for a while, and one that goes on after it was sent. What is sent twice
is there once.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from PIL import Image

from betasigma.build import Config
from betasigma.commands.config import parsed
from betasigma.commands.run_facts import shown_config
from betasigma.display import Display
from betasigma.errors import UserError, counted, first_line
from betasigma.options.apps import Sync
from betasigma.options.base import dump, parse_leniently
from betasigma.options.loggers import WandbOptions
from betasigma.pictures import CAPTION
from betasigma.report.runs import Run, read_config
from betasigma.report.scan import WorkTime, run_directories
from betasigma.runs import directory
from betasigma.runs.files import read_json, write_json, write_text
from betasigma.runs.header import CHECKPOINTS, read_header
from betasigma.runs.lock import refuse_locked
from betasigma.runs.record import METRICS, Record
from betasigma.runs.start import Start
from betasigma.runs.status import FINISHED, RUNNING, read_status
from betasigma.training.account import wandb_place
from betasigma.training.checkpoints import to_keep
from betasigma.training.tracking import IMAGES, SECONDS, STEP, begin_wandb, keep_checkpoint

SENT = "sent.json"
"""File beside those of Weights & Biases that says what has been sent, and where."""

LAG = 15.0
"""Seconds in which a server counts what it was sent."""

Value = tuple[str, int]  # metric and step


class Recipient(NamedTuple):
    """Where runs go: the server, and what the command says instead of the runs' own configs."""

    api: Any
    asked: Sync

    @property
    def given(self) -> dict[str, str]:
        """Project and entity, where the command says them."""
        wanted = {"project": self.asked.project, "entity": self.asked.entity}
        return {key: value for key, value in wanted.items() if value is not None}

    def options(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the logger for a run with this config."""
        node = saved.get("logger") or {}
        own = node if node.get("kind") == "wandb" else {"group": saved.get("name")}
        options = {**dump(parse_leniently(WandbOptions, own)[0]), **self.given, **OF_THIS_MACHINE}
        told = wandb_place(options, {"name": saved.get("name"), "tags": []}, Path())
        return {**options, "project": told["project"], "entity": told["entity"]}

    def begin(self, run: Path, saved: Mapping[str, Any], shown: Config, identity: str) -> Any:
        """Begin the run there, or continue it."""
        arguments = (self.options(saved), run, shown, identity, "online")
        return begin_wandb(*arguments, resume="allow", finish_timeout=self.asked.patience)

    def known(self, saved: Mapping[str, Any], identity: str | None) -> Any:
        """What the server knows of a run; ``None`` for nothing."""
        from wandb.errors import CommError

        options = self.options(saved)
        path = "/".join(filter(None, [options["entity"], options["project"], identity]))
        try:
            return None if identity is None else self.api.run(path)
        except CommError as error:
            if "Could not find run" in str(error):
                return None
            raise UserError(f"the server does not tell what it has: {error}") from None


OF_THIS_MACHINE = {"system": False, "console": False}
"""What is not collected while a run is sent."""


def sync(config: DictConfig, start: Start) -> None:
    """Send runs to Weights & Biases, each as one run with one history."""
    _, asked = parsed(config, Sync)
    os.environ.setdefault("WANDB_SILENT", "true")  # read at import
    recipient = Recipient(connect(asked.timeout), asked)
    display = Display()
    found = [run for path in asked.runs for run in run_directories(Path(path))]
    runs, rows, failed = list(dict.fromkeys(found)), [], 0
    with display.work("sending runs", len(runs)) as update:
        for number, run in enumerate(runs, 1):
            try:
                said = send(run, recipient)
            except UserError as error:
                said, failed = f"failed: {error}", failed + 1
            rows.append([str(directory.short(run)), said])
            update(number, "")
    display.table("Weights & Biases", ["run", "what was sent"], rows)
    if failed:
        raise UserError(
            f"{failed} of {counted(len(runs), 'run')} could not be sent; the command can be "
            f"repeated"
        )


def connect(timeout: float) -> Any:
    """The server, as far as it answers."""
    import wandb

    try:
        return wandb.Api(timeout=max(1, int(timeout)))
    except Exception as error:  # of whatever kind
        raise UserError(f"Weights & Biases cannot be reached: {first_line(error)}") from None


def send(run: Path, recipient: Recipient) -> str:
    """Send what the server lacks of a run."""
    again = recipient.asked.again
    identity = None if again else directory.wandb_id(run)
    legs = list((run / directory.WANDB).glob(f"*run-*/run-{identity or '*'}.wandb"))
    legs.sort(key=lambda leg: leg.parent.name.removeprefix("offline-"))  # which says when it began
    trained = (run / directory.CONFIG).is_file()
    if not trained and not legs:
        return "nothing: it has no files of Weights & Biases"
    if legs and not legs[-1].parent.name.startswith("offline-") and _is_written(run):
        return "nothing: it still runs, and logs online itself"
    pictures = sorted((run / directory.SAMPLES).glob("step_*.png"))
    files = [run / METRICS, *pictures] if trained else legs
    where = [os.environ.get("WANDB_BASE_URL"), recipient.asked.entity, recipient.asked.project]
    receipt = [*where, identity, _digest([file for file in files if file.is_file()])]
    if identity is not None and read_json(run / directory.WANDB / SENT).get("sent") == receipt:
        return "nothing new"
    if not os.access(run, os.W_OK):
        raise UserError(
            "its directory cannot be written, where what was sent is noted: send a copy"
        )
    saved = _saved(run) if trained else {}
    if len(legs) == 1 and not again and _can_go_as_it_is(legs[0], run, saved, recipient):
        _upload(legs[0], recipient)
        said = "its file"
    elif trained:
        if identity is None:
            identity = secrets.token_hex(4)
            write_text(run / directory.WANDB_ID, f"{identity}\n")
        said = _continue(run, saved, identity, recipient)
    else:
        raise UserError(f"it has {len(legs)} files of Weights & Biases, which would mix")
    kept = _send_checkpoints(run, saved, recipient) if trained else 0
    if kept:
        said += f", {counted(kept, 'checkpoint')}"
    receipt[-2] = identity
    write_json(run / directory.WANDB / SENT, {"sent": receipt})
    return said


def _is_written(run: Path) -> bool:
    """Whether a process writes to a run directory."""
    try:
        refuse_locked(run)
    except UserError:
        return True
    return False


def _digest(files: list[Path]) -> str:
    """Hex digest of files' names and contents."""
    digest = blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _saved(run: Path) -> dict[str, Any]:
    """The config of a run. Nothing in it is resolved."""
    content = read_config(run / directory.CONFIG)
    if content is None:
        raise UserError(f"its {directory.CONFIG} cannot be read")
    return content


# ---------------------------------------------------------------- a file as it is


def _can_go_as_it_is(leg: Path, run: Path, saved: Mapping[str, Any], recipient: Recipient) -> bool:
    """Whether a file of Weights & Biases has all of a run, and the server nothing yet."""
    if not saved:
        return True
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(leg)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        return False
    last = max((int(row["step"]) for row in Record.of(run).rows()), default=0)
    closed = told.get("exit_code") is not None and told["summary"].get(STEP) == last
    return closed and recipient.known(saved, directory.wandb_id(run)) is None


def _upload(leg: Path, recipient: Recipient) -> None:
    """Send a file of Weights & Biases."""
    marker = leg.with_name(f"{leg.name}.synced")
    marker.unlink(missing_ok=True)
    wanted = [f"--{key}={value}" for key, value in recipient.given.items()]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--include-online", *wanted, leg.absolute()],
            capture_output=True,
            text=True,
            check=False,
            timeout=recipient.asked.patience,
            cwd=leg.parent,
            env={**os.environ, "WANDB_SILENT": "false"},
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"the server did not take it within {recipient.asked.patience:g} s"
        ) from None
    said = f"{done.stdout}\n{done.stderr}".splitlines()
    errors = [line for line in said if re.search("ERROR|panic:", line)]
    if errors or not marker.is_file():  # it marks a file, and exits with 0, whatever arrived
        marker.unlink(missing_ok=True)
        raise UserError(next(iter(errors), "the server did not take it").removeprefix("wandb: "))


# ---------------------------------------------------------------- from metrics.csv


def _continue(run: Path, saved: dict[str, Any], identity: str, recipient: Recipient) -> str:
    """Send the values and pictures that the server lacks, and see that it has got all of them."""
    known = recipient.known(saved, identity)
    rows = list(lacking(run, on_server(known)))
    if not rows:
        return "nothing: the server has all of it"
    try:
        shown = shown_config(saved, run, read_json(run / directory.ENVIRONMENT))
        experiment = recipient.begin(run, saved, shown, identity)
        work = WorkTime(Run(run, saved))
        for row in rows:
            size = saved.get("batch_size")
            images = {IMAGES: row[STEP] * size} if isinstance(size, int) else {}
            experiment.log({**row, **images, SECONDS: round(work.until(row["_timestamp"]), 3)})
        status = read_status(run).get("status")
        goes_on = status == RUNNING and _is_written(run)
        experiment.finish(exit_code=0 if goes_on or status == FINISHED else 1)
    except Exception as error:  # of whatever kind
        raise UserError(f"the server did not take it ({first_line(error)})") from None
    end = time.monotonic() + LAG
    while left := len(list(lacking(run, on_server(recipient.known(saved, identity))))):
        if time.monotonic() > end:
            raise UserError(f"the server has not got {left} of {len(rows)} rows of it")
        time.sleep(1)
    began = "" if known is None else ", which the server lacked"
    return f"{counted(len(rows), 'row')} of {METRICS} and of pictures{began}"


def _send_checkpoints(run: Path, saved: dict[str, Any], recipient: Recipient) -> int:
    """Send the checkpoints that the run's config wants there; those that are there stay."""
    which = str(recipient.options(saved)["artifacts"])
    identity, files = directory.wandb_id(run), list(to_keep(run / CHECKPOINTS, which))
    if not files or identity is None:
        return 0
    with recipient.begin(run, saved, saved, identity) as experiment:
        for path in files:
            keep_checkpoint(experiment, path, read_header(path)["step"], path.stem)
    return len(files)


def on_server(known: Any) -> Counter[Value]:
    """How often the server has each value of a run."""
    found: Counter[Value] = Counter()
    for row in known.scan_history(use_cache=False) if known is not None else ():
        step = row.get(STEP)
        if isinstance(step, int | float):
            found.update((key, int(step)) for key in row if not key.startswith("_") and key != STEP)
    return found


def lacking(run: Path, there: Counter[Value]) -> Iterator[dict[str, Any]]:
    """The rows of a run's history that the server lacks: values of ``metrics.csv`` that were
    written together, with their time, and pictures of samples after the values of their step.
    """
    there = Counter(there)
    rows: list[dict[str, Any]] = []
    last: dict[int, int] = {}
    for line in Record.of(run).rows():
        value: Value = (line["metric"], int(line["step"]))
        there[value] -= 1
        if there[value] >= 0:
            continue
        stamp = {STEP: value[1], "_timestamp": float(line["time"])}
        new = not rows or any(rows[-1][key] != stamp[key] for key in stamp)
        if new or line["metric"] in rows[-1]:
            rows.append(stamp)
        rows[-1][line["metric"]] = float(line["value"])
        last[value[1]] = len(rows) - 1
    shown: dict[int, list[tuple[int, Path]]] = {}
    for path in sorted((run / directory.SAMPLES).glob("step_*.png")):
        digits = re.fullmatch(r"step_(\d+)", path.stem)
        if digits and there["samples", int(digits[1])] <= 0:
            shown.setdefault(last.get(int(digits[1]), -1), []).append((int(digits[1]), path))
    yield from _pictures(shown.get(-1, []))
    for number, row in enumerate(rows):
        yield row
        yield from _pictures(shown.get(number, []))


def _pictures(shown: list[tuple[int, Path]]) -> Iterator[dict[str, Any]]:
    import wandb

    for step, path in shown:
        with Image.open(path) as image:
            caption = image.info.get(CAPTION)
            told = caption if isinstance(caption, str) else f"step {step}"
            samples = [wandb.Image(image.convert("RGB"), caption=told)]
        yield {"samples": samples, STEP: step, "_timestamp": path.stat().st_mtime}
