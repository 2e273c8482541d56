"""What others ask of the data, from the node ``data`` of a config: asked once, and handed on. No
heavy imports, except for a data set of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from betasigma.data import catalog
from betasigma.errors import UserError
from betasigma.options import DataFacts


def find_facts(node: Mapping[str, Any]) -> DataFacts:
    """What others ask of the data, from the node ``data`` of a config.

    Files are looked for, not read; a data set of one's own is opened.

    Raises:
        UserError: where files are missing, or a key does not fit the data set.
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
    """The same without looking for any file."""
    name, root, mixture = node["name"], node.get("root"), node.get("mixture", "ring")
    return DataFacts(
        name,
        catalog.sample_shape(name, node.get("image_size"), node.get("channels")),
        lambda: catalog.num_classes(name, root, mixture),
        has_density=name == "mixture",
        value_range=catalog.MIXTURE_RANGE if name == "mixture" else None,
    )
