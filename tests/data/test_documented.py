"""What docs/data.md says of a data set of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import ROOT, Launch

from betasigma.data import catalog, facts
from betasigma.data.facts import find_facts
from betasigma.errors import UserError
from betasigma.options import DataOptions

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
    assert "conf/data/base.yaml` has every key" in PAGE
    assert set(base) - {"_target_"} == set(DataOptions.model_fields) - {"target"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"image_size": [16]},
            r"data\.image_size=\[16\] must be a valid integer or have at least 2 it",
        ),
        ({"image_size": [16, 0]}, r"data\.image_size\[1\]=0 must be at least 1"),
        (
            {"image_size": "big"},
            r"data\.image_size=big must be a valid integer or be \[height,width\] or null$",
        ),
        (
            {"background": "red"},
            r"data\.background=red must be 'white', 'black' or 'grey' or be \[red,green,blue\]$",
        ),
        ({"background": [1, 2, 256]}, r"data\.background\[2\]=256 must be at most 255"),
        ({"bits": 8}, r"data\.bits=8 must be at least 9"),
        ({"bits": 12, "window": [0.0, 1.0]}, r"data\.bits=12 and data\.window=\[0\.0, 1\.0\] excl"),
        ({"window": [1.0, 0.0]}, r"data\.window=\[1\.0, 0\.0\] must have its lesser value first"),
        ({"values": [1.0, 1.0]}, r"data\.values=\[1\.0, 1\.0\] must have its lesser value first"),
        ({"layout": "tree"}, r"data\.layout=tree must be 'flat', 'classes', 'splits' or"),
    ],
)
def test_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DataOptions.check(**values)


@pytest.mark.parametrize("key", ["layout", "labels", "bits", "window", "values", "axes", "columns"])
def test_a_key_of_other_data_is_refused(key: str) -> None:
    values = {"layout": "flat", "labels": "a.csv", "bits": 12, "window": [0, 1], "axes": "CHW"}
    node = {"name": "digits", key: {**values, "values": [0, 1], "columns": ["image"]}[key]}
    with pytest.raises(UserError, match=rf"data\.{key}=.* does not apply to data=digits: remove"):
        find_facts(node)


def test_the_jobs_of_a_sweep_look_once_for_their_files(
    tmp_path: Path, write_image: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        write_image(tmp_path / f"{i}.png", (9, 9), i)
    looks: list[Path] = []
    look = facts.list_folder
    monkeypatch.setattr(facts, "list_folder", lambda *of: looks.append(of[0]) or look(*of))
    node = {"name": "image_folder", "root": str(tmp_path), "image_size": 8}
    with facts.found_once():
        found = [find_facts({**node, "seed": seed}) for seed in range(5)]
        assert {one.shape for one in found} == {(3, 8, 8)}
        assert find_facts({**node, "image_size": 4}).shape == (3, 4, 4)
        assert len(looks) == 1
        with pytest.raises(UserError, match="labels"):
            find_facts({**node, "labels": "nowhere.csv"})
        assert len(looks) == 2
    find_facts(node)
    find_facts(node)
    assert len(looks) == 4
