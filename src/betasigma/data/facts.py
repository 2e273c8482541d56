"""Find the facts of the data that a ``data`` node names.

Nothing heavy is imported, except for a data set of the user.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from betasigma.data import catalog
from betasigma.data.listing import Listing, list_folder
from betasigma.errors import UserError
from betasigma.options import DataFacts, DataOptions
from betasigma.options.data import height_and_width
from betasigma.options.plugins import NotAllowed, locate

if TYPE_CHECKING:
    from betasigma.data.arrays import ArrayFile
    from betasigma.data.hub import HubTable


def find_facts(node: Mapping[str, Any]) -> DataFacts:
    """Return the facts of the data that a ``data`` node names.

    Files are looked for, and names and headers read. A data set of the user (``data.source``) is
    opened.
    """
    name, root, seed = node["name"], node.get("root"), node.get("seed", 0)
    if node.get("source") is not None:
        from betasigma.data.custom import open_examples  # imports PyTorch

        if name in catalog.NAMES:
            target = str(node["source"].get("_target_"))
            named = (
                f"data.name={name} names a data set of betasigma, and data.source another: give it "
                f"a name of its own, data.name={target.rpartition('.')[2]}"
            )
            try:
                locate(target, "data.source")
            except NotAllowed as error:
                raise UserError(str(error), f"and {named}") from None
            raise UserError(named)
        return open_examples(node["source"], root, seed, node.get("axes")).facts(name)
    catalog.refuse_what_does_not_apply(name, node)
    catalog.check(name, root, node.get("download", False))
    return described_facts(node, find_files(node))


def find_files(node: Mapping[str, Any]) -> Listing | HubTable | ArrayFile | None:
    """Find the files of a ``data`` node that a user brings; ``None`` of another data set."""
    if node["name"] not in catalog.OF_THE_USER:
        return None
    asked = {key: node.get(key) for key in FILE_KEYS}
    known, key = _known.get(), json.dumps(asked, default=str)
    if known is None:
        return _find_files(asked)
    if key not in known:
        known[key] = _find_files(asked)
    return known[key]


FILE_KEYS = ("name", "root", "axes", "values", "columns", "download", "layout", "labels")
"""Keys of a ``data`` node on which it depends what files are found."""

_known: ContextVar[dict[str, Any] | None] = ContextVar("known", default=None)
"""Files that were found already, by what was asked; ``None`` outside :func:`found_once`."""


@contextmanager
def found_once() -> Iterator[None]:
    """Within this block, look once for files that are asked for several times, as the jobs of a
    sweep do. It takes seconds where there are many.
    """
    before = _known.set({})
    try:
        yield
    finally:
        _known.reset(before)


def _find_files(node: Mapping[str, Any]) -> Listing | HubTable | ArrayFile:
    name = node["name"]
    path = catalog.data_path(name, node["root"])
    if name == "array":
        from betasigma.data.arrays import open_array  # imports NumPy

        return open_array(path, node["axes"], node["values"])
    if name == "hub":
        from betasigma.data.hub import open_table  # imports Hugging Face's datasets

        return open_table(str(node["root"]), node["columns"], bool(node["download"]))
    return list_folder(path, node["layout"], node["labels"])


def described_facts(
    node: Mapping[str, Any], found: Listing | HubTable | ArrayFile | None = None
) -> DataFacts:
    """Return the same facts without looking for files, except those of an array."""
    name, mixture = node["name"], node.get("mixture", DataOptions.DEFAULTS["mixture"])
    image_size, channels = node.get("image_size"), node.get("channels")
    if name == "array":
        file = found or find_files(node)
        return cast("ArrayFile", file).facts(
            name, image_size and height_and_width(image_size), channels
        )

    def classes() -> tuple[str, ...]:
        files = found or find_files(node)
        return catalog.class_names(name, mixture) if files is None else files.classes

    return DataFacts(
        name,
        catalog.sample_shape(name, image_size, channels),
        classes,
        has_density=name == "mixture",
        value_range=catalog.MIXTURE_RANGE if name == "mixture" else None,
    )
