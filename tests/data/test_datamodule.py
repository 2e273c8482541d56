import multiprocessing
from itertools import islice

import numpy as np
import pytest
import torch

from betasigma.data import sources
from betasigma.data.datamodule import ImageDataModule
from betasigma.errors import UserError


def steps(data, n):
    """The first ``n`` training batches, with ``x``."""
    return [data.prepare_batch(batch) for batch in islice(data.train_dataloader(), n)]


def prepared(data, indices, step=3):
    """Images 0, 1, … of the data set as positions ``indices`` of a training step."""
    image = data.tensor("train")[torch.tensor(indices)]
    return data.prepare_batch(
        {"image": image, "index": np.asarray(indices), "step": step, "augment": True}
    )["x"]


def test_batches_are_bytes_labels_and_addresses():
    data = ImageDataModule("digits", batch_size=16)
    first, second = steps(data, 2)
    assert first["image"].dtype == torch.uint8
    assert first["image"].shape == (16, 1, 8, 8)
    assert first["label"].dtype == torch.int64
    assert first["index"].dtype == np.int64
    assert first["index"].tolist() == list(range(16))
    assert (first["step"], second["step"]) == (0, 1)
    assert first["x"].dtype == torch.float32
    assert torch.equal(first["x"], first["image"] / 127.5 - 1)
    assert (data.data_name, data.num_classes, data.sample_shape) == ("digits", 10, (1, 8, 8))


def test_every_image_once_per_epoch_with_its_own_label():
    data = ImageDataModule("digits", batch_size=479)
    batches = steps(data, 3)
    pairs = [
        (int(label), image.numpy().tobytes())
        for batch in batches
        for image, label in zip(batch["image"], batch["label"], strict=True)
    ]
    source = data.source("train")
    theirs = [
        (int(label), image.numpy().tobytes())
        for image, label in zip(source.images, source.labels, strict=True)
    ]
    assert sorted(pairs) == sorted(theirs)


def test_a_set_smaller_than_one_batch():
    data = ImageDataModule("digits", batch_size=4000)
    (batch,) = steps(data, 1)
    assert batch["x"].shape == (4000, 1, 8, 8)


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_value_range_round_trip(value_range):
    data = ImageDataModule("digits", value_range=value_range)
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.from_uint8(every)), every)
    assert data.value_range == value_range


@pytest.mark.parametrize("option", [{"flip": True}, {"dequantize": True}])
def test_augmentation_depends_on_seed_step_and_index_only(option):
    data = ImageDataModule("digits", **option)
    whole = prepared(data, list(range(40)))
    assert torch.equal(whole, prepared(ImageDataModule("digits", **option), list(range(40))))
    for part in ([7], [30, 2, 17], list(range(16, 32))):
        assert torch.equal(prepared(data, part), whole[part])
    assert not torch.equal(prepared(data, list(range(40)), step=4), whole)
    assert not torch.equal(
        prepared(ImageDataModule("digits", seed=1, **option), list(range(40))), whole
    )


def test_flips_are_of_half_the_images_and_horizontal():
    data = ImageDataModule("digits", flip=True)
    plain = data.from_uint8(data.tensor("train")[:1000])
    x = prepared(data, list(range(1000)))
    mirrored = (x == plain.flip(-1)).flatten(1).all(dim=1)
    same = (x == plain).flatten(1).all(dim=1)
    assert (mirrored | same).all()
    assert 400 < mirrored.sum() < 600


def test_dequantisation_fills_each_byte_s_bin():
    data = ImageDataModule("digits", dequantize=True, value_range=(0.0, 1.0))
    x = prepared(data, list(range(64)))
    inside = x * 256 - data.tensor("train")[:64]
    assert inside.min() >= -1e-4
    assert inside.max() <= 1 + 1e-4
    assert abs(inside.mean() - 0.5) < 0.02


def test_validation_is_fixed_and_plain():
    data = ImageDataModule("digits", batch_size=32, val_size=100, flip=True, dequantize=True)
    loader = data.val_dataloader()
    batches = [data.prepare_batch(batch) for batch in loader]
    assert len(batches) == len(loader)
    index = np.concatenate([b["index"] for b in batches])
    assert len(np.unique(index)) == 100
    assert {b["step"] for b in batches} == {0}
    x = torch.cat([b["x"] for b in batches])
    assert torch.equal(data.to_uint8(x), data.tensor("test")[index])
    assert torch.equal(x, data.from_uint8(data.tensor("test")[index]))


def test_dequantised_validation_is_the_same_every_time():
    data = ImageDataModule("digits", val_dequantize=True, val_size=50)
    one, two = (
        torch.cat([data.prepare_batch(b)["x"] for b in data.val_dataloader()]) for _ in range(2)
    )
    assert torch.equal(one, two)
    plain = torch.cat([data.from_uint8(b["image"]) for b in data.val_dataloader()])
    assert not torch.equal(one, plain)


def test_mixture_is_left_as_it_is():
    data = ImageDataModule("mixture", batch_size=32, value_range=(0.0, 1.0), mixture="grid")
    (batch,) = steps(data, 1)
    assert batch["x"].shape == (32, 2)
    assert torch.equal(data.to_uint8(batch["x"]), batch["image"])
    assert data.from_uint8(batch["x"]) is batch["x"]
    assert (data.sample_shape, data.num_classes) == ((2,), 25)
    assert data.value_range == (-1.0, 1.0)
    assert data.content_key("train") != data.content_key("test")


def test_batches_for_statistics():
    data = ImageDataModule("digits")
    assert torch.equal(torch.cat(list(data.batches("test", 100))), data.tensor("test"))
    limited = list(data.batches("train", 32, limit=70))
    assert [len(b) for b in limited] == [32, 32, 6]
    assert torch.equal(torch.cat(limited), torch.cat(list(data.batches("train", 70, limit=70))))
    examples = {image.numpy().tobytes() for image in data.tensor("train")}
    assert all(image.numpy().tobytes() in examples for image in torch.cat(limited))
    assert not torch.equal(torch.cat(limited), data.tensor("train")[:70])
    assert data.size("test") == 360


@pytest.fixture
def folder(tmp_path, write_image):
    for i in range(30):
        write_image(tmp_path / "ab"[i % 2] / f"{i}.png", (10 + i % 3, 12), i)
    return tmp_path


def _folder_data(folder, **options):
    options = {"batch_size": 8, "image_size": 8, "workers": 0, "flip": True} | options
    return ImageDataModule("image_folder", folder, **options)


def test_streaming_through_workers_equals_in_memory(folder):
    memory = _folder_data(folder, in_memory=True)
    here = _folder_data(folder, in_memory=False)
    workers = _folder_data(folder, in_memory=False, workers=2)
    before = torch.random.get_rng_state()
    for a, b, c in zip(steps(memory, 8), steps(here, 8), steps(workers, 8), strict=True):
        assert a.keys() == b.keys() == c.keys()
        assert a["index"].tolist() == b["index"].tolist() == c["index"].tolist()
        for key in ("x", "label"):
            assert torch.equal(a[key], b[key])
            assert torch.equal(a[key], c[key])
        assert a["step"] == b["step"] == c["step"]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (memory.num_classes, workers.num_classes) == (2, 2)
    streamed = torch.cat(list(workers.batches("train", 7)))
    assert torch.equal(streamed, memory.tensor("train"))
    with pytest.raises(UserError, match=r"data\.in_memory=true"):
        workers.tensor("train")


def test_a_worker_s_error_is_still_one_sentence(folder):
    data = _folder_data(folder, in_memory=False, workers=1)
    loader = data.train_dataloader()
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []  # nor is a worker waited for later


def test_options_out_of_range():
    for option in (
        {"batch_size": 0},
        {"value_range": (1.0, 0.0)},
        {"workers": -1},
        {"val_size": 0},
        {"image_size": 0},
        {"channels": 3},
    ):
        with pytest.raises(UserError, match=next(iter(option))):
            ImageDataModule("digits", **option)
    with pytest.raises(UserError, match="mixture has no pixels"):
        ImageDataModule("mixture", flip=True)


def test_preparing_data(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data\.root=.* has no MNIST/raw"):
        ImageDataModule("mnist", tmp_path).prepare_data()
    asked = []
    monkeypatch.setattr(sources, "download", lambda *args: asked.append(args))
    ImageDataModule("mnist", tmp_path, download=True).prepare_data()
    ImageDataModule("digits", download=True).prepare_data()
    assert asked == [("mnist", tmp_path)]


def test_images_are_as_numpy_sees_them():
    """A batch is a copy: writing to it leaves the data set alone."""
    data = ImageDataModule("digits", batch_size=8)
    before = data.tensor("train").clone()
    next(iter(data.train_dataloader()))["image"].zero_()
    assert np.array_equal(data.tensor("train").numpy(), before.numpy())


def test_training_on_one_batch_repeats_its_images_and_nothing_else():
    data = ImageDataModule("digits", batch_size=16, one_batch=True)
    first, second = steps(data, 2)
    assert torch.equal(first["x"], second["x"])
    assert torch.equal(first["label"], second["label"])
    assert (first["step"], second["step"]) == (0, 1)  # by which noise and times are addressed
    (ordinary,) = steps(ImageDataModule("digits", batch_size=16), 1)
    assert torch.equal(first["x"], ordinary["x"])
