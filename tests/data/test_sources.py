import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from betasigma.data import catalog, sources, toy
from betasigma.errors import UserError

MNIST = Path(__file__).parents[2].parent / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(
    not (MNIST / "MNIST").exists(), reason=f"the MNIST files are not in {MNIST}"
)


def test_digits_split():
    train, test = (sources.load("digits", None, split) for split in ("train", "test"))
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.images.max() == 255
    assert train.labels.dtype == torch.int64
    assert (train.num_classes, test.num_classes) == (10, 10)
    counts = torch.bincount(train.labels) / torch.bincount(test.labels)
    assert counts.min() > 3.8
    assert counts.max() < 4.2
    again = sources.load("digits", None, "train")
    assert torch.equal(train.images, again.images)


def test_digits_are_all_there_once_with_their_labels():
    halves = [sources.load("digits", None, split) for split in ("train", "test")]
    mine = [
        (int(label), image.numpy().tobytes())
        for half in halves
        for image, label in zip(half.images, half.labels, strict=True)
    ]
    digits = load_digits()
    scaled = np.rint(digits.images * 255 / 16).astype(np.uint8)
    theirs = [
        (int(label), image.tobytes()) for image, label in zip(scaled, digits.target, strict=True)
    ]
    assert sorted(mine) == sorted(theirs)


@pytest.mark.parametrize("name", toy.BY_NAME)
def test_mixture(name):
    source = sources.load("mixture", None, "train", mixture=name, seed=1)
    assert source.images.shape == (50_000, 2)
    assert source.images.dtype == torch.float32
    assert source.num_classes == len(catalog.class_names("mixture", mixture=name))
    same = sources.load("mixture", None, "train", mixture=name, seed=1)
    assert torch.equal(source.images, same.images)
    for other in (
        sources.load("mixture", None, "train", mixture=name, seed=2),
        sources.load("mixture", None, "test", mixture=name, seed=1),
    ):
        assert not torch.equal(source.images[:100], other.images[:100])
        assert source.content_key() != other.content_key()


def test_take_and_resize():
    source = sources.load("digits", None, "test", image_size=16)
    assert source.shape == (1, 16, 16)
    taken = source.take(np.array([3, 0, 3]))
    assert torch.equal(taken["image"], source.images[[3, 0, 3]])
    assert torch.equal(taken["label"], source.labels[[3, 0, 3]])


def test_content_key_is_of_the_pixels():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    changed = images.clone()
    changed[3, 0, 1, 1] = 1
    key = sources.InMemory(images).content_key()
    assert key == sources.InMemory(images.clone()).content_key()
    assert key != sources.InMemory(changed).content_key()
    assert key != sources.InMemory(images.reshape(4, 1, 1, 4)).content_key()
    assert int(key, 16) >= 0


def test_options_that_do_not_apply():
    for option in ({"crop": "center_4"}, {"in_memory": True}, {"channels": 3}):
        with pytest.raises(UserError, match=rf"data\.{next(iter(option))}="):
            sources.load("digits", None, "train", **option)


@needs_mnist
def test_mnist():
    train, test = (sources.load("mnist", MNIST, split) for split in ("train", "test"))
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert sources.load("mnist", MNIST, "test", image_size=32).shape == (1, 32, 32)


def _idx(values: np.ndarray) -> bytes:
    header = [0x0800 + values.ndim, *values.shape]
    return b"".join(int(n).to_bytes(4, "big") for n in header) + values.tobytes()


def _write_mnist(root: Path) -> None:
    rng = np.random.default_rng(0)
    for file in catalog.describe("mnist").files:
        shape = (6, 28, 28) if "images" in file else (6,)
        content = _idx(rng.integers(0, 10, shape, dtype=np.uint8))
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("damage", [b"", b"\x00\x00\x08\x03", b"<html>not found</html>" * 9])
def test_broken_mnist_is_one_sentence(tmp_path, damage):
    _write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(damage)
    with pytest.raises(UserError, match=r"data\.root=.* cannot be read .*data\.download=true"):
        sources.load("mnist", tmp_path, "train")


def test_truncated_mnist(tmp_path):
    _write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        sources.load("mnist", tmp_path, "train")


class _FakeCifar:
    """Parsing is torchvision's and its checksums are of the real files."""

    def __init__(self, root, train=True, download=False):
        rng = np.random.default_rng(int(train))
        self.data = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        self.targets = [0, 1, 2, 3, 4]
        if download:
            for file in catalog.describe("cifar10").files:
                path = Path(root, file)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"x")
            Path(root, "cifar-10-python.tar.gz").write_bytes(b"archive")


def test_cifar10_layout(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", _FakeCifar)
    sources.download("cifar10", tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["cifar-10-batches-py"]
    source = sources.load("cifar10", tmp_path / "new", "train")
    raw = _FakeCifar(None).data
    assert np.array_equal(source.images.numpy(), raw.transpose(0, 3, 1, 2))


def test_cifar10_that_is_not_the_published_one(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in catalog.describe("cifar10").files:
        (tmp_path / file).write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=r"data\.root=.* cannot be read"):
        sources.load("cifar10", tmp_path, "train")


def test_failed_download_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(root, download):
        Path(root, "half").write_bytes(b"1")
        raise RuntimeError("no network\nTried everything")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(UserError, match=r"could not be downloaded .*\(no network\)"):
        sources.download("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def _write_celeba(root: Path) -> None:
    images = root / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    lines = []
    for i in range(9):
        name = f"{i + 1:06d}.jpg"
        noise = np.random.default_rng(i).integers(0, 256, (218, 178, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / name)
        lines.append(f"{name} {i % 3}")
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def test_celeba(tmp_path):
    _write_celeba(tmp_path)
    source = sources.load("celeba", tmp_path, "train", crop="center_140")
    assert len(source) == 3
    assert source.shape == (3, 64, 64)
    assert source.num_classes == 0
    with Image.open(tmp_path / "celeba" / "img_align_celeba" / "000004.jpg") as image:
        published = image.crop((19, 39, 159, 179)).resize((64, 64), Image.Resampling.BILINEAR)
    image = source.take(np.array([1]))["image"][0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(image, np.asarray(published))


def test_celeba_with_a_broken_partition(tmp_path):
    _write_celeba(tmp_path)
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000001.jpg\n")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt that cannot be read"):
        sources.load("celeba", tmp_path, "train")
    (tmp_path / "celeba" / "list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"has no celeba/list_eval_partition\.txt"):
        sources.load("celeba", tmp_path, "train")
    shutil.rmtree(tmp_path / "celeba")
    with pytest.raises(UserError, match="img_align_celeba and 1 more"):
        sources.load("celeba", tmp_path, "train")
