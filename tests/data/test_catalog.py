import subprocess
import sys

import pytest

from betasigma.data import catalog, sources, toy
from betasigma.data.listing import list_folder
from betasigma.errors import UserError

DOWNLOADABLE = [n for n in catalog.NAMES if catalog.describe(n).downloadable]


def test_no_heavy_import():
    code = (
        "import sys, betasigma.data.catalog; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'PIL', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["digits", "mixture"])
def test_embedded_data_needs_nothing(name):
    catalog.check(name, None)


@pytest.mark.parametrize("name", DOWNLOADABLE)
def test_missing_files_are_named_with_the_remedy(name, tmp_path):
    with pytest.raises(UserError) as caught:
        catalog.check(name, tmp_path)
    message = str(caught.value)
    assert f"data.root={tmp_path}" in message
    assert catalog.describe(name).files[0] in message
    assert "data.download=true" in message
    assert "\n" not in message
    catalog.check(name, tmp_path, download=True)
    with pytest.raises(UserError, match="has no"):
        catalog.check(name, tmp_path / ("long" * 100))


@pytest.mark.parametrize("name", [*DOWNLOADABLE, "image_folder"])
def test_root_not_set(name):
    with pytest.raises(UserError, match=r"data\.root is not set"):
        catalog.check(name, None, download=True)


def test_missing_folder_of_images(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=.*nowhere is not a folder"):
        catalog.check("image_folder", tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=rf"data\.root={tmp_path} has no images .*1 \.txt \(notes"):
        list_folder(tmp_path)


def test_mnist_is_found(tmp_path):
    for file in catalog.describe("mnist").files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    catalog.check("mnist", tmp_path)


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match=r"did you mean mnist\?"):
        catalog.check("mnits", None)
    with pytest.raises(UserError, match=r"data\.mixture=rings must be 'ring', 'two' or 'grid'"):
        catalog.class_names("mixture", mixture="rings")


def test_sample_shapes():
    assert catalog.sample_shape("digits") == (1, 8, 8)
    assert catalog.sample_shape("mnist", 32) == (1, 32, 32)
    assert catalog.sample_shape("celeba") == (3, 64, 64)
    assert catalog.sample_shape("mixture") == (2,)
    assert catalog.sample_shape("image_folder", 48, 1) == (1, 48, 48)
    assert catalog.sample_shape("image_folder", [16, 32], 4) == (4, 16, 32)
    for bad in (("mnist", 28, 3), ("image_folder", 48, 5), ("image_folder",), ("mnist", 0)):
        with pytest.raises(UserError):
            catalog.sample_shape(*bad)


def test_crops():
    for name, crop in (("celeba", "centre_140"), ("celeba", "center_0"), ("mnist", "center_9")):
        with pytest.raises(UserError, match=r"data\.crop"):
            sources.load(name, None, "train", crop=crop)


def test_classes_of_a_mixture_are_its_components():
    counts = {"ring": 8, "two": 2, "grid": 25}
    found = {name: len(catalog.class_names("mixture", mixture=name)) for name in toy.BY_NAME}
    assert found == counts
