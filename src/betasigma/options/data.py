"""Options of the data: which set, where it is, what is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from betasigma.options.base import ComponentOptions, Count, Unfit, listed, option, written

Split = Literal["train", "test"]
OnCorrupt = Literal["warn", "error"]
MixtureName = Literal["ring", "two", "grid"]
Layout = Literal["flat", "classes", "splits", "splits_in_classes"]
Axes = Literal["CHW", "HWC"]
CROP = r"center_([1-9]\d*)"
Crop = Annotated[str, written(CROP, "be center_<side>, as in center_140")]
Byte = Annotated[int, Field(ge=0, le=255)]
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
Colour = Annotated[list[Byte], Field(min_length=3, max_length=3), listed("[red,green,blue]")]
Background = Literal["white", "black", "grey"] | Colour
Sides = Annotated[list[Count], Field(min_length=2, max_length=2), listed("[height,width]")]
ImageSize = Count | Sides
"""Height and width: one number for both, or the two."""

DECODERS = (
    *("AVIF", "BLP", "BMP", "DCX", "DDS", "DIB", "FITS", "FTEX", "GIF", "ICNS", "ICO", "IM"),
    *("JPEG", "JPEG2000", "MPO", "MSP", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI"),
    *("SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
"""Pillow's formats of pixels, which alone may be opened. Its others start a program (EPS starts
Ghostscript), call for a library of drawings (WMF), or only recognise a file (HDF5, PDF).
"""

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


def _called(source: Any) -> Any:
    if isinstance(source, str):
        raise Unfit(f"must be a node: write data.source._target_={source}")
    if isinstance(source, dict) and "_target_" not in source:
        raise Unfit("must name a callable: write data.source._target_=mylab.data.stripes, say")
    return source


class DataOptions(ComponentOptions):
    """Options of the datamodule. ``source`` names a callable of an outside package."""

    group: ClassVar[str] = "data"
    targets = ("betasigma.data.datamodule.ImageDataModule",)

    name: str = option("", "of the data set; for one of your own, any name that tells it apart")
    source: Annotated[dict[str, Any] | None, BeforeValidator(_called)] = option(
        None, "a callable (_target_) that returns a data set of one's own"
    )
    root: str | None = option(
        None, "folder of the files; of an image_folder also a zip archive; of an array, its file"
    )
    download: bool = option(False, "fetch them if they are missing")
    layout: Layout | None = option(
        None, "what the folders of an image_folder mean; null: what their names say"
    )
    labels: str | None = option(
        None, "a CSV or JSON file of labels; null: dataset.json if there is one, else the folders"
    )
    image_size: ImageSize | None = option(
        None, "height and width to resize to, or [height, width]; null: the native size"
    )
    channels: Count | None = option(
        None, "of an image_folder: 3 for RGB, 1 for greyscale, 4 and 2 with transparency"
    )
    crop: Crop | None = option(None, "center_<side>, cut out before resizing")
    background: Background = option(
        "white", "what shows through transparent parts of images, by name or as [red, green, blue]"
    )
    bits: Annotated[int, Field(ge=9, le=16)] | None = option(
        None, "that 16-bit greyscale images use; null: all"
    )
    window: Interval | None = option(
        None, "values of greyscale that become black and white, instead of bits"
    )
    max_pixels: Count = option(100_000_000, "of the largest image that is decoded")
    values: Interval | None = option(
        None, "of an array: what becomes black and white; null: bytes, 0 and 255"
    )
    columns: Annotated[list[str], Field(min_length=1, max_length=2)] | None = option(
        None, "of a hub's table: [image] or [image,label]; null: what their types say"
    )
    axes: Axes | None = option(None, "of the images of an array; null: what their lengths say")
    flip: bool = option(False, "mirror training images with probability 1/2")
    dequantize: bool = option(False, "spread the bytes of training images uniformly")
    val_size: Count | None = option(
        None,
        "test images used for validation; null: 1000, or as many as take a tenth of the training",
    )
    workers: Annotated[int, Field(ge=0, le=1024)] = option(
        2, "processes that decode images that are not held in memory"
    )
    in_memory: bool | None = option(
        None, "decode all images at the start; null: where they are few"
    )
    on_corrupt: OnCorrupt = option("warn", "at images that cannot be decoded")
    one_batch: bool = option(False, "train on the first batch only, again and again")
    mixture: MixtureName = option("ring", "toy distribution of data=mixture")

    @model_validator(mode="after")
    def _depth(self) -> Self:
        if self.bits is not None and self.window is not None:
            raise ValueError(
                f"data.bits={self.bits} and data.window={self.window} exclude each other: both say "
                f"which values become black and white"
            )
        for key, interval in {"window": self.window, "values": self.values}.items():
            if interval is not None and interval[0] >= interval[1]:
                raise ValueError(f"data.{key}={interval} must have its lesser value first")
        return self

    @model_validator(mode="after")
    def _of_ones_own(self) -> Self:
        if self.source is not None:
            why = "does not apply to a data set of one's own (data.source): leave it out"
            self.refuse_given(OF_OUR_SETS, why)
        return self


OF_OUR_SETS = (
    *("download", "layout", "labels", "image_size", "channels", "crop", "background", "bits"),
    *("window", "max_pixels", "values", "columns", "in_memory", "on_corrupt", "mixture"),
)
"""Keys of the data sets that have a name here."""

OPENING = ("root", "axes", *OF_OUR_SETS)
"""Keys that say how such a data set is opened."""


def kind_of(shape: Sequence[int]) -> str:
    """What data of this shape are called: ``image``, or ``point`` where they are vectors."""
    return "point" if len(shape) == 1 else "image"


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return ``data.image_size`` as height and width."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width
