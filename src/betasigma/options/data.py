"""Options of the data: which set, where it is, what is done to it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from betasigma.options.base import ComponentOptions, Count, Index, option

Split = Literal["train", "test"]
OnCorrupt = Literal["warn", "error"]
MixtureName = Literal["ring", "two", "grid"]


class DataOptions(ComponentOptions):
    """Options of the datamodule. ``source`` names a callable of an outside package."""

    group: ClassVar[str] = "data"
    targets = ("betasigma.data.datamodule.ImageDataModule",)

    name: str = option("", "of the data set; of one's own, whatever tells it apart")
    source: dict[str, Any] | None = option(
        None, "a callable (_target_) that returns a data set of one's own"
    )
    root: str | None = option(None, "folder of the files")
    download: bool = option(False, "fetch them if they are missing")
    image_size: Count | None = option(None, "height and width to resize to; null: the native size")
    channels: Literal[1, 3] | None = option(None, "of an image_folder: 3 for RGB, 1 for greyscale")
    crop: str | None = option(None, "center_<side>, cut out before resizing")
    flip: bool = option(False, "mirror training images with probability 1/2")
    dequantize: bool = option(False, "spread the bytes of training images uniformly")
    val_size: Count = option(1000, "test images used for validation during training")
    workers: Index = option(2, "processes that decode images that are not held in memory")
    in_memory: bool | None = option(
        None, "decode all images at the start; null: where they are few"
    )
    on_corrupt: OnCorrupt = option("warn", "at images that cannot be decoded")
    one_batch: bool = option(False, "train on the first batch only, again and again")
    mixture: MixtureName = option("ring", "toy distribution of data=mixture")
