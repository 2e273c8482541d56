"""What becomes of the values of image files: transparency, 16 bits, sizes, formats."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from betasigma.data import sources
from betasigma.data.image_files import Decoder, Undecodable, covering
from betasigma.data.listing import endings
from betasigma.errors import UserError
from betasigma.options.data import DECODERS


def png(path: Path, pixels: np.ndarray, bits: int, kind: int) -> Path:
    """A PNG file of any kind, which Pillow does not write: ``(H, W, channels)``, big-endian."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.fixture
def bordered(tmp_path: Path) -> Path:
    """Red, with a border that is transparent and red beneath."""
    pixels = np.full((8, 8, 4), (255, 0, 0, 0), dtype=np.uint8)
    pixels[2:6, 2:6, 3] = 255
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(pixels).save(tmp_path / split / "bordered.png")
        Image.fromarray(pixels[..., :3]).save(tmp_path / split / "plain.png")
    return tmp_path


@pytest.mark.parametrize(
    ("background", "colour"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ([1, 2, 3], (1, 2, 3))],
)
def test_what_is_transparent_shows_the_background(
    bordered: Path, background: str | list[int], colour: tuple[int, ...]
) -> None:
    path = bordered / "train" / "bordered.png"
    image = Decoder((8, 8), 3, background=background).decode(path).image
    assert tuple(image[:, 0, 0].tolist()) == colour
    assert image[:, 3, 3].tolist() == [255, 0, 0]


def test_half_transparent_is_half_the_background(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 2), (100, 51), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "half.png")
    assert (Decoder((4, 4), 1).decode(tmp_path / "half.png").image == 224).all()  # .2·100 + .8·255
    kept = Decoder((4, 4), 2).decode(tmp_path / "half.png").image
    assert kept[:, 0, 0].tolist() == [100, 51]
    assert Decoder((4, 4), 4).decode(tmp_path / "half.png").image[:, 0, 0].tolist() == [
        100,
        100,
        100,
        51,
    ]


def test_a_transparent_colour_of_a_palette_and_of_rgb(tmp_path: Path) -> None:
    paletted = Image.new("P", (4, 4), 1)
    paletted.putpalette([9, 9, 9, 0, 0, 255])
    paletted.save(tmp_path / "p.gif", transparency=1)
    assert (Decoder((4, 4), 3).decode(tmp_path / "p.gif").image == 255).all()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert (Decoder((4, 4), 3).decode(tmp_path / "rgb.png").image == 255).all()


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_with_transparent_parts_are_counted(bordered: Path, in_memory: bool) -> None:
    with pytest.warns(
        UserWarning, match=r"^transparent parts of 1 of 2 images show .*background=white"
    ):
        source = sources.load("image_folder", bordered, "train", 8, in_memory=in_memory)
    assert source.take(np.array([0]))["image"][0, :, 0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_of_which_twelve_are_used(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 64).round().reshape(8, 8).astype(np.uint16)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(ramp).save(tmp_path / split / "0.png")
    with pytest.warns(UserWarning, match=r"values up to 4,095 of 65,535, which become 15 of 255: "):
        dark = sources.load("image_folder", tmp_path, "train", 8, channels=1)
    assert dark.take(np.array([0]))["image"].max() == 15
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bright = sources.load("image_folder", tmp_path, "train", 8, channels=1, bits=12)
    found = bright.take(np.array([0]))["image"][0, 0].numpy()
    assert np.array_equal(found, ramp // 16)
    with (
        pytest.warns(UserWarning, match=r"values up to 4,095, and data\.bits=10 ends before"),
        pytest.raises(UserError, match="can be decoded"),
    ):
        sources.load("image_folder", tmp_path, "train", 8, channels=1, bits=10)


def test_a_window_of_numbers(tmp_path: Path) -> None:
    values = np.array([[-1000.0, -100.0], [50.0, 3000.0]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "ct.tiff")
    with pytest.raises(Undecodable, match=r"mode F.*data\.window=\[low,high\]"):
        Decoder((2, 2), 1).decode(tmp_path / "ct.tiff")
    found = Decoder((2, 2), 1, window=(-100, 100)).decode(tmp_path / "ct.tiff").image
    assert found[0].tolist() == [[0, 0], [191, 255]]
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(Undecodable, match="not finite"):
        Decoder((2, 2), 1, window=(0, 1)).decode(tmp_path / "nan.tiff")


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_sixteen_bits(tmp_path: Path, kind: int, channels: int) -> None:
    """Pillow reads their upper byte without a word; a range that is hardly used is told."""
    path = png(tmp_path / "deep.png", np.full((4, 4, channels), 0x0AFF), 16, kind)
    decoded = Decoder((4, 4), channels).decode(path)
    assert (decoded.image == 0x0A).all()
    assert decoded.deepest == 0x0A0A
    assert decoded.colour
    with pytest.raises(Undecodable, match="its colours have 16 bits"):
        Decoder((4, 4), channels, bits=12).decode(path)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        png(tmp_path / split / "deep.png", np.full((4, 4, channels), 0x0AFF), 16, kind)
    with pytest.warns(UserWarning, match=r"16 bits in 1 of 1 image, .* 2,570 .* Pillow reads no"):
        sources.load("image_folder", tmp_path, "train", 4, channels=channels, layout="splits")


def test_a_pgm_says_how_far_its_values_go(tmp_path: Path) -> None:
    values = np.array([[0, 4095], [2048, 1024]], dtype=">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 2 4095\n" + values.tobytes())
    decoded = Decoder((2, 2), 1).decode(tmp_path / "deep.pgm")
    assert decoded.image[0].tolist() == [[0, 255], [128, 64]]
    assert decoded.deepest is None


def test_very_large_images_need_a_key(tmp_path: Path) -> None:
    Image.new("1", (11_000, 10_000)).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Undecodable) as refused:
            Decoder((4, 4), 1).decode(tmp_path / "large.png")
        assert str(refused.value) == (
            "11000×10000 are 110,000,000 pixels; data.max_pixels=110000000 allows them"
        )
        assert Decoder((4, 4), 1, max_pixels=110_000_000).decode(
            tmp_path / "large.png"
        ).image.shape == (1, 4, 4)


def test_several_frames_are_counted(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 20, 30)]
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        frames[0].save(tmp_path / split / "0.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="several frames in 1 of 1 image; the first is taken"):
        source = sources.load("image_folder", tmp_path, "train", 4, channels=1)
    assert (source.take(np.array([0]))["image"] == 10).all()


def test_no_decoder_starts_a_program(tmp_path: Path) -> None:
    """An EPS file, whatever its ending, is not opened: Pillow would hand it to Ghostscript."""
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "x.png").write_bytes(drawing)
    assert Image.open(io.BytesIO(drawing)).format == "EPS"
    with pytest.raises(Undecodable, match="not an image"):
        Decoder((4, 4), 3).decode(tmp_path / "x.png")
    assert not {"EPS", "WMF", "PDF", "MPEG", "HDF5", "GRIB", "BUFR", "IPTC"} & set(DECODERS)
    assert not {".eps", ".ps", ".wmf", ".pdf", ".h5"} & endings()


FORMATS = {
    **{".bmp": "BMP", ".dib": "DIB", ".gif": "GIF", ".ico": "ICO", ".jfif": "JPEG", ".im": "IM"},
    **{".jp2": "JPEG2000", ".msp": "MSP", ".pcx": "PCX", ".ppm": "PPM", ".sgi": "SGI"},
    **{".tga": "TGA", ".tiff": "TIFF", ".webp": "WEBP", ".xbm": "XBM", ".avif": "AVIF"},
    **{".qoi": "QOI", ".dds": "DDS", ".icns": "ICNS", ".png": "PNG", ".mpo": "MPO"},
}


@pytest.mark.parametrize("ending", FORMATS)
def test_what_pillow_writes_is_read(tmp_path: Path, ending: str) -> None:
    if ending in (".avif", ".webp") and not features.check(ending[1:]):
        pytest.skip(f"this Pillow is built without {ending[1:]}")
    if ending == ".jp2" and not features.check("jpg_2000"):
        pytest.skip("this Pillow is built without jpg_2000")
    Image.init()
    if FORMATS[ending] not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {FORMATS[ending]}")
    mode = {".xbm": "1", ".msp": "1"}.get(ending, "RGB")
    image = Image.new(mode, (16, 16), 1 if mode == "1" else (200, 100, 50))
    image.save(tmp_path / f"a{ending}", format=FORMATS[ending])
    assert ending in endings()
    found = Decoder((16, 16), 3).decode(tmp_path / f"a{ending}").image[:, 8, 8].tolist()
    expected = [255, 255, 255] if mode == "1" else [200, 100, 50]
    assert np.allclose(found, expected, atol=3)


@pytest.mark.parametrize(
    ("size", "wanted", "cover"),
    [
        ((10, 30), (5, 5), [5, 15]),
        ((30, 10), (5, 5), [15, 5]),
        ((10, 10), (16, 32), [32, 32]),
        ((10, 40), (16, 32), [16, 64]),
        ((7, 9), (7, 9), [7, 9]),
        ((3, 7), (2, 5), [2, 5]),
    ],
)
def test_covering(size: tuple[int, int], wanted: tuple[int, int], cover: list[int]) -> None:
    assert covering(size, wanted) == cover


def test_images_that_are_not_square(tmp_path: Path) -> None:
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 10:50] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = Decoder((10, 20), 3).decode(tmp_path / "wide.png").image
    assert found.shape == (3, 10, 20)
    assert (found[:, :, 1:-1] == 200).all()
