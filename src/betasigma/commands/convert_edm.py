"""``scripts/import.py convert=edm``: what a pickle of EDM holds, as plain tensors.

A pickle of EDM carries the source of its classes and runs it when it is read. This is the one place
of the package that reads such a file, because the user asks for just that; nothing else in it is
kept than numbers, words and tensors.
"""

from __future__ import annotations

import inspect
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from betasigma.errors import UserError
from betasigma.published.edm_weights import EDM
from betasigma.runs.files import replace_file


def convert_edm(source: Path, code: Path, directory: Path) -> Path:
    """Write the averaged network of a pickle as plain tensors with its settings.

    Args:
        source: the pickle. It is executed.
        code: a clone of EDM's code, which the pickle asks for.
        directory: takes the file, which has the name of the pickle.

    Returns:
        The file.
    """
    sys.path.insert(0, str(code.resolve()))
    try:
        with source.open("rb") as file:
            content = pickle.load(file)
    except Exception as error:  # the pickle's own code may raise anything
        raise UserError(f"from={source} cannot be read with code={code}: {error!r}") from None
    finally:
        sys.path.remove(str(code.resolve()))
    net = content.get("ema") if isinstance(content, dict) else None
    model = getattr(net, "model", None)
    if not isinstance(net, nn.Module) or not isinstance(model, nn.Module):
        raise UserError(f"from={source} holds no network of EDM under the name ema")
    plain = {
        "format": EDM,
        "preconditioning": _settings(net),
        "network": _settings(model),
        "weights": {
            name: value.detach().cpu().clone() for name, value in model.state_dict().items()
        },
    }
    written = directory / f"{source.stem}.pt"
    with replace_file(written) as partial:
        torch.save(plain, partial)
    return written


def _settings(module: nn.Module) -> dict[str, Any]:
    """Class and arguments of a module as plain values, the defaults of its class included."""
    original: Any = type(module).__mro__[1]  # what EDM's decorator made persistent
    made_with: Any = module
    bound = inspect.signature(original).bind_partial(*made_with.init_args, **made_with.init_kwargs)
    bound.apply_defaults()
    arguments = {**bound.arguments, **bound.arguments.get("model_kwargs", {})}
    return {
        "class": type(module).__name__,
        **{name: value for name, given in arguments.items() if (value := _plain(given)) != {}},
    }


def _plain(value: Any) -> Any:
    """A plain value; ``{}`` for what is none."""
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    return {}
