"""The account at Weights & Biases. No heavy imports."""

from __future__ import annotations

import netrc
import os

from betasigma.errors import UserError


def wandb_mode(mode: str) -> str:
    """``online`` or ``offline``; ``auto`` is online exactly where an account is set up.

    Nothing is asked and nothing is sent to find out.
    """
    if mode in ("online", "offline"):
        return mode
    chosen = os.environ.get("WANDB_MODE", "")
    if chosen in ("online", "offline", "disabled"):
        return chosen
    return "online" if logged_in() else "offline"


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
    """Refuse what needs Weights & Biases where it is switched off.

    Raises:
        UserError: naming the variable.
    """
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled"):
        raise UserError(f"{asked} needs Weights & Biases, and WANDB_MODE={mode} switches it off")


def sweep_run_id() -> str | None:
    """The id that ``wandb agent`` has given this run of its sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
