"""What docs/data.md says of a data set of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import yaml
from launching import ROOT, Launch

from betasigma.data import catalog

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_a_data_set_is_five_lines(
    here: Path, train: Launch, write_image: Callable[..., None]
) -> None:
    """The file of the page, with another root and size, in a folder of configs."""
    shown = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    text = shown[1].replace("/data/faces.zip", "faces").replace("64", "8")
    content = yaml.safe_load(text)
    assert len(text.splitlines()) == 6  # five and the line that Hydra asks for
    assert content["data"] == {"name": "image_folder", "root": "faces", "image_size": 8}
    for i in range(12):
        write_image(here / "faces" / f"{i}.png", (9, 9), i)
    (here / "own" / "data").mkdir(parents=True)
    (here / "own" / "data" / "faces.yaml").write_text(text)
    ended = train("--config-dir", "own", "data=faces", "network=unet_8")
    assert "training ddpm on image_folder (3×8×8, " in ended.out
    kept = json.loads((ended.run / "data.json").read_text())
    assert kept["train"]["examples"] + kept["test"]["examples"] == 12


def test_the_page_names_what_the_command_takes() -> None:
    named = set(re.findall(r"data=(\w+)", PAGE)) - {"faces"}
    assert named <= set(catalog.NAMES)
    keys = set(re.findall(r"data\.(\w+)=", PAGE))
    base = yaml.safe_load((ROOT / "conf" / "data" / "base.yaml").read_text())["data"]
    assert keys <= set(base), keys - set(base)
