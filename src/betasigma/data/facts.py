"""Find the facts of the data that a ``data`` node names.

Nothing heavy is imported, except for a data set of the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from betasigma.data import catalog
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
    described = described_facts(node)
    catalog.crop_size(name, node.get("crop"))
    catalog.check(name, root, node.get("download", False))
    return described


def described_facts(node: Mapping[str, Any]) -> DataFacts:
    """Return the same facts without looking for files."""
    name, root = node["name"], node.get("root")
    mixture = node.get("mixture", DataOptions.DEFAULTS["mixture"])
    return DataFacts(
        name,
        catalog.sample_shape(name, node.get("image_size"), node.get("channels")),
        lambda: catalog.num_classes(name, root, mixture),
        has_density=name == "mixture",
        value_range=catalog.MIXTURE_RANGE if name == "mixture" else None,
    )
