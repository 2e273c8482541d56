"""The account at Weights & Biases, and where a run appears there. No heavy imports."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from betasigma.errors import UserError
from betasigma.runs.directory import SWEEP

LONGEST_TAG = 64
"""Characters that Weights & Biases takes in a tag."""


def wandb_mode(mode: str) -> str:
    """``online``, ``offline`` or ``disabled``. ``auto`` follows the variables of Weights & Biases,
    and is else online exactly where an account is set up.

    Nothing is asked and nothing is sent to find out.
    """
    if mode in ("online", "offline"):
        return mode
    if _is_disabled():
        return "disabled"
    chosen = os.environ.get("WANDB_MODE", "")
    if chosen in ("online", "offline", "disabled"):
        return chosen
    return "online" if logged_in() else "offline"


def _is_disabled() -> bool:
    """Whether the variable of its own that Weights & Biases knows from earlier switches it off."""
    return os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "t", "yes", "on")


def logged_in() -> bool:
    """Whether this machine has an account at Weights & Biases."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    path = os.environ.get("NETRC", os.path.expanduser("~/.netrc"))
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def check_online(asked: str) -> None:
    """Refuse what needs Weights & Biases where it is switched off."""
    mode = os.environ.get("WANDB_MODE", "")
    off = f"WANDB_MODE={mode}" if mode in ("offline", "disabled") else "WANDB_DISABLED"
    if off != "WANDB_DISABLED" or _is_disabled():
        raise UserError(f"{asked} needs Weights & Biases, and {off} switches it off")


def wandb_place(
    settings: Mapping[str, Any], config: Mapping[str, Any], run: Path
) -> dict[str, Any]:
    """Where a run appears, as arguments of ``wandb.init``: what the config says, else what the
    variables of Weights & Biases say, else what the run itself says. Tags are all of these.
    """
    sweep = config.get(SWEEP)

    def first(key: str, variable: str, otherwise: str | None) -> str | None:
        return settings.get(key) or os.environ.get(variable) or otherwise

    told = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",")]
    tags = [*config["tags"], *told, sweep]
    return {
        "project": first("project", "WANDB_PROJECT", "betasigma"),
        "entity": first("entity", "WANDB_ENTITY", None),
        "group": first("group", "WANDB_RUN_GROUP", sweep or config["name"]),
        "name": first("name", "WANDB_NAME", run.name),
        "tags": list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag)),
    }


def sweep_run_id() -> str | None:
    """The id that ``wandb agent`` has given this run of its sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
