"""Find the facts of the data that a ``data`` node names.

Nothing heavy is imported, except for a data set of the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from betasigma.data import catalog
from betasigma.data.listing import Listing, list_folder
from betasigma.errors import UserError
from betasigma.options import DataFacts, DataOptions


def find_facts(node: Mapping[str, Any]) -> DataFacts:
    """Return the facts of the data that a ``data`` node names.

    Files are looked for, not read. A data set of the user (``data.source``) is opened.

    Raises:
        UserError: if files are missing, or a key does not fit the data set.
    """
    name, root, seed = node["name"], node.get("root"), node.get("seed", 0)
    if node.get("source") is not None:
        from betasigma.data.custom import open_examples  # imports PyTorch

        if name in catalog.NAMES:
            raise UserError(
                f"data.name={name} names a data set of betasigma, and data.source another: give "
                f"data.name a name of its own"
            )
        return open_examples(node["source"], root, seed).facts(name)
    catalog.refuse_what_does_not_apply(name, node)
    catalog.crop_size(name, node.get("crop"))
    catalog.check(name, root, node.get("download", False))
    return described_facts(node, list_images(node))


def list_images(node: Mapping[str, Any]) -> Listing | None:
    """Find the images of a ``data`` node; ``None`` if they are not a folder's or an archive's.

    Raises:
        UserError: if there are none, or the folders can be read in two ways.
    """
    if node["name"] != "image_folder":
        return None
    root = catalog.folder(node.get("root"))
    return list_folder(root, node.get("layout"), node.get("labels"))


def described_facts(node: Mapping[str, Any], listed: Listing | None = None) -> DataFacts:
    """Return the same facts without looking for files.

    Args:
        node: the ``data`` node.
        listed: the files of an ``image_folder``; ``None`` to look for them if they are asked about.
    """
    name, mixture = node["name"], node.get("mixture", DataOptions.DEFAULTS["mixture"])
    return DataFacts(
        name,
        catalog.sample_shape(name, node.get("image_size"), node.get("channels")),
        lambda: catalog.class_names(name, listed or list_images(node), mixture),
        has_density=name == "mixture",
        value_range=catalog.MIXTURE_RANGE if name == "mixture" else None,
    )
