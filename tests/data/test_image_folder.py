import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from betasigma.data import image_files, listing, sources
from betasigma.data.image_files import Decoder, ImageFiles
from betasigma.errors import UserError


@pytest.fixture
def folder(tmp_path, write_image):
    """Forty images of odd sizes, modes and formats, in subfolders two deep."""
    for i in range(40):
        mode = ("RGB", "L", "RGBA", "P", "1", "CMYK")[i % 6]
        end = "jpg" if mode == "CMYK" else ("png", "tiff")[i % 2]
        name = f"{'ab'[i % 2]}/{'' if i % 3 else 'deep/'}{i}.{end}"
        write_image(tmp_path / name, (9 + 7 * (i % 5), 40 - i % 7), i, mode)
    (tmp_path / "readme.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    write_image(tmp_path / ".hidden" / "thumb.png")
    write_image(tmp_path / "a" / "._apple.png")
    return tmp_path


def test_listing_holds_out_a_tenth_by_name(folder, write_image):
    found = listing.list_folder(folder)
    train, test = set(found.train.names), set(found.test.names)
    assert not train & test
    assert len(train | test) == 40
    assert 1 <= len(test) <= 10
    assert found.classes == ("a", "b")
    write_image(folder / "a" / "zzz.png")
    more = listing.list_folder(folder)
    assert train <= set(more.train.names)
    assert test <= set(more.test.names)


def test_two_images_are_enough_and_one_is_not(tmp_path, write_image):
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"leaves no image to test on: .* at least 2 \(it has 1\)"):
        listing.list_folder(tmp_path)
    write_image(tmp_path / "b.png")
    found = listing.list_folder(tmp_path)
    assert sorted(found.train.names + found.test.names) == ["a.png", "b.png"]
    assert found.classes == ()


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folders_of_splits(tmp_path, held_out, write_image):
    for split, count in (("train", 3), (held_out, 2)):
        for i in range(count):
            for kind in ("cat", "dog"):
                write_image(tmp_path / split / kind / f"{i}.png", seed=i)
    found = listing.list_folder(tmp_path)
    assert (len(found.train.names), len(found.test.names)) == (6, 4)
    assert found.classes == ("cat", "dog")
    assert found.test.labels == (0, 0, 1, 1)
    source = sources.load("image_folder", tmp_path, "test", 8)
    assert source.take(np.arange(4))["label"].tolist() == [0, 0, 1, 1]


def test_images_beside_subfolders_have_no_classes(tmp_path, write_image):
    for name in ("a/1.png", "b/2.png", "3.png"):
        write_image(tmp_path / name)
    assert listing.list_folder(tmp_path).classes == ()
    assert "label" not in sources.load("image_folder", tmp_path, "train", 8).take(np.array([0]))


@pytest.mark.parametrize("channels", [1, 3])
def test_streaming_equals_in_memory(folder, channels):
    for split in ("train", "test"):
        memory, stream = (
            sources.load("image_folder", folder, split, 12, channels=channels, in_memory=in_memory)
            for in_memory in (True, False)
        )
        assert isinstance(stream, ImageFiles)
        assert len(memory) == len(stream)
        assert memory.shape == stream.shape == (channels, 12, 12)
        examples = np.arange(len(memory))[::-1].copy()
        a, b = memory.take(examples), stream.take(examples)
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])
        assert a["image"].dtype == torch.uint8


def test_small_folders_are_held_in_memory(folder, monkeypatch):
    assert isinstance(sources.load("image_folder", folder, "test", 12), sources.InMemory)
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 100)
    assert isinstance(sources.load("image_folder", folder, "test", 12), ImageFiles)


def test_decoding_resizes_the_shorter_side_and_keeps_the_centre(tmp_path):
    path = tmp_path / "wide.png"
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(path)
    image = Decoder((10, 10), 3).decode(path).image
    assert (image == 200).all()
    assert Decoder((5, 5), 1).decode(path).image.shape == (1, 5, 5)
    assert (Decoder((20, 20), 3).decode(path).image[:, :, 3:17] == 200).all()


def test_antialiasing(tmp_path):
    """A fine checkerboard becomes grey."""
    path = tmp_path / "board.png"
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(path)
    image = Decoder((16, 16), 1).decode(path).image.float()
    assert image[:, 2:-2, 2:-2].sub(127.5).abs().max() < 10


def test_crop_comes_first(tmp_path):
    path = tmp_path / "framed.png"
    pixels = np.full((30, 20), 255, dtype=np.uint8)
    pixels[10:20, 5:15] = 50
    Image.fromarray(pixels).save(path)
    assert (Decoder((4, 4), 1, crop=10).decode(path).image == 50).all()
    with pytest.raises(image_files.Undecodable, match="20×30 is smaller than crop=center_25"):
        Decoder((4, 4), 1, crop=25).decode(path)


def test_sixteen_bits_and_orientation(tmp_path):
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 200 * 256 + 7, dtype=np.uint16)).save(deep)
    assert (Decoder((4, 4), 1).decode(deep).image == 200).all()
    turned = tmp_path / "turned.jpg"
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(turned, exif=exif, quality=95)
    image = Decoder((16, 16), 1).decode(turned).image
    assert image[0, 12:].float().mean() > 250
    assert image[0, :4].float().mean() < 5


@pytest.fixture
def damaged(tmp_path, write_image):
    """Twelve good images, and three that are empty, no image, or cut off."""
    for i in range(12):
        write_image(tmp_path / "train" / f"{i:02d}.png", (32, 32), i)
    write_image(tmp_path / "test" / "0.png")
    (tmp_path / "train" / "empty.jpg").touch()
    (tmp_path / "train" / "page.png").write_text("<html>404</html>")
    whole = (tmp_path / "train" / "05.png").read_bytes()
    (tmp_path / "train" / "05.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_corrupt_files_are_named_and_left_out_of_memory(damaged):
    with pytest.warns(UserWarning, match=r"05\.png .*empty\.jpg .*page\.png \(not an image\)"):
        source = sources.load("image_folder", damaged, "train", 8)
    assert len(source) == 11


def test_corrupt_files_are_named_and_replaced_in_a_stream(damaged):
    with pytest.warns(UserWarning, match=r"skipped.*empty\.jpg .*page\.png"):
        source = sources.load("image_folder", damaged, "train", 8, in_memory=False)
    assert len(source) == 12
    with pytest.warns(UserWarning, match=r"skipped.*05\.png"):
        images = source.take(np.array([5, 6, 5]))["image"]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@pytest.mark.parametrize("in_memory", [True, False])
def test_corrupt_files_are_fatal_by_choice(damaged, in_memory):
    with pytest.raises(UserError, match=r"data\.on_corrupt=error and .*empty\.jpg"):
        sources.load("image_folder", damaged, "train", 8, on_corrupt="error", in_memory=in_memory)


def test_nothing_but_corrupt_files(tmp_path):
    for i in range(3):
        for split in ("train", "test"):
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / f"{i}.png").write_text("x")
    for in_memory in (True, False):
        with (
            pytest.warns(UserWarning, match="skipped"),
            pytest.raises(UserError, match=r"no image in .*train that can be decoded"),
        ):
            sources.load("image_folder", tmp_path, "train", 8, in_memory=in_memory)


def test_a_file_that_disappears_is_replaced_and_all_of_them_are_an_error(folder, monkeypatch):
    source = sources.load("image_folder", folder, "train", 8, in_memory=False)
    names = listing.list_folder(folder).train.names
    (folder / names[0]).unlink()
    with pytest.warns(UserWarning, match=rf"skipped an image .*{names[0]} \(missing\)"):
        taken = source.take(np.array([0, 1]))["image"]
    assert torch.equal(taken[0], taken[1])
    for name in names[1:]:
        (folder / name).unlink()
    with (
        pytest.warns(UserWarning, match="missing"),
        pytest.raises(UserError, match="16 images in a row"),
    ):
        source.take(np.array([20]))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="can no longer be read"):
        source.take(np.array([0]))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_failing_disk_is_no_corrupt_file(folder, monkeypatch, code, in_memory):
    """No disk that fails is at hand: ``open`` answers as the system does when one fails."""
    opened, name = Path.open, listing.list_folder(folder).train.names[3]

    def fails(path, *arguments, **options):
        if str(path).endswith(name):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(UserError, match=rf"image that cannot be read: .*{name}"):
        sources.load("image_folder", folder, "train", 8, in_memory=in_memory)


def test_content_key_of_a_stream_follows_files_and_decoding(folder):
    def key(**options):
        options = {"in_memory": False} | options
        return sources.load("image_folder", folder, "train", 8, **options).content_key()

    first = key()
    assert first == key()
    assert len({first, key(channels=1), key(in_memory=True)}) == 3
    path = folder / listing.list_folder(folder).train.names[0]
    os.utime(path, (1, 1))
    assert key() != first
