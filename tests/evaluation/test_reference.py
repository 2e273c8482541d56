from contextlib import contextmanager

import pytest
import torch

from betasigma.data.order import subset
from betasigma.evaluation import reference as module
from betasigma.evaluation.features import Identity
from betasigma.evaluation.reference import ReferenceStatistics


@pytest.fixture
def data(images, tensor_data):
    return tensor_data(images(70, 0, size=4), images(30, 1, size=4))


@pytest.fixture
def statistics(data, tmp_path):
    return ReferenceStatistics(Identity(48), data, tmp_path / "cache", batch_size=16)


def test_second_time_comes_from_the_file(statistics, data):
    first = statistics.get("train")
    assert data.given == 70
    again = ReferenceStatistics(Identity(48), data, statistics.cache_dir).get("train")
    assert data.given == 70
    assert again.moments.count == 70
    assert torch.equal(again.moments.mean, first.moments.mean)
    assert torch.equal(again.moments.scatter, first.moments.scatter)
    assert torch.equal(again.features, first.features)


def test_moments_are_those_of_the_images(statistics, data):
    found = statistics.get("train").moments
    torch.testing.assert_close(found.cov, data.splits["train"].flatten(1).double().T.cov())
    assert statistics.get("train", limit=20).moments.count == 20


def test_files_hold_tensors_only(statistics):
    statistics.get("test")
    content = torch.load(statistics.path("test"), weights_only=True)
    assert content["features"].shape == (30, 48)
    assert [file.name for file in statistics.path("test").parent.iterdir()] == [
        statistics.path("test").name
    ]


def test_everything_it_depends_on_is_in_the_name(statistics, data, images):
    paths = {statistics.path("train"), statistics.path("test"), statistics.path("train", 20)}
    statistics.extractor.fingerprint = "other"
    paths.add(statistics.path("train"))
    data.splits["train"] = images(70, 5, size=4)
    paths.add(statistics.path("train"))
    assert len(paths) == 5


def test_more_than_there_are_is_all_of_them(statistics, data):
    """Asked for 70, 71 or all of 70 images, it computes them once."""
    names = {statistics.path("train", limit) for limit in (None, 70, 71, 10_000)}
    assert names == {statistics.path("train")}
    assert statistics.path("train", 69) not in names
    statistics.get("train", 500)
    statistics.get("train", 1000)
    assert data.given == 70


def test_changed_content_is_computed_again(statistics, data):
    before = statistics.get("train")
    data.splits["train"] = data.splits["train"].flip(0).clone().add_(1)
    after = statistics.get("train")
    assert not torch.equal(before.moments.mean, after.moments.mean)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def another_key(path):
    torch.save(torch.load(path, weights_only=True) | {"key": "other"}, path)


def another_shape(path):
    torch.save(torch.load(path, weights_only=True) | {"packed": torch.zeros(3, 3)}, path)


def incomplete(path):
    torch.save({"key": torch.load(path, weights_only=True)["key"]}, path)


@pytest.mark.parametrize("harm", [cut, another_key, another_shape, incomplete])
def test_a_damaged_file_is_replaced_with_a_warning(statistics, data, harm):
    expected = statistics.get("train")
    harm(statistics.path("train"))
    with pytest.warns(UserWarning, match="is damaged"):
        found = statistics.get("train")
    assert data.given == 140
    assert torch.equal(found.moments.mean, expected.moments.mean)
    statistics.get("train")
    assert data.given == 140


def test_a_cache_that_cannot_be_written_is_a_warning(data, tmp_path):
    (tmp_path / "file").touch()
    statistics = ReferenceStatistics(Identity(48), data, tmp_path / "file")
    with pytest.warns(UserWarning, match="could not be written"):
        assert statistics.get("train").moments.count == 70


def test_default_directory_is_the_environments(data, tmp_path):
    assert ReferenceStatistics(Identity(48), data).cache_dir == tmp_path / "betasigma"


def test_features_are_in_the_order_of_the_split(statistics, data):
    assert torch.equal(statistics.get("train").features, data.splits["train"].flatten(1).float())


def test_only_so_many_features_are_kept(statistics, data, monkeypatch):
    monkeypatch.setattr(module, "CAP", 10)
    found = statistics.get("train")
    chosen = subset(70, 10)
    assert chosen[-1] > 35, "from all over the split"
    wanted = data.splits["train"][chosen].flatten(1).float()
    assert torch.equal(found.features, wanted)
    assert found.moments.count == 70


def test_processes_keep_the_features_that_one_keeps(data, monkeypatch):
    """Each reads every second batch, and what they keep is joined in the order of the split."""
    monkeypatch.setattr(module, "CAP", 10)
    rows = data.splits["train"].flatten(1).float()
    parts = [module.Part(48, 70, torch.device("cpu")) for _ in range(2)]
    for number, batch in enumerate(rows.split(16)):
        for rank, part in enumerate(parts):
            part.add(len(batch), batch if number % 2 == rank else None)
    joined = module._join(parts)
    assert torch.equal(joined.features, rows[subset(70, 10)])
    assert joined.moments.count == 70


def test_work_is_shown_unless_it_is_in_the_cache(data, tmp_path):
    seen = []

    @contextmanager
    def work(what, total, done):
        yield lambda done, note: seen.append((what, done, total))

    for _ in range(2):
        ReferenceStatistics(Identity(48), data, tmp_path, 16, work).get("train", limit=40)
    assert [done for _, done, _ in seen] == [16, 32, 40]
    assert {(what, total) for what, _, total in seen} == {
        ("features of 40 train images, to be kept", 40)
    }


class Stops(Identity):
    """Features of so many batches of 8 images, then Ctrl-C."""

    def __init__(self, batches: int) -> None:
        super().__init__(48)
        self.left = batches

    def features_and_logits(self, images):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().features_and_logits(images)


def stopped(data, folder, batches):
    statistics = ReferenceStatistics(Stops(batches), data, folder, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        statistics.get("train")


def test_a_stopped_computation_goes_on_to_the_same_bits(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEEP_SECONDS", 0)
    monkeypatch.setattr(module, "CAP", 40)
    expected = ReferenceStatistics(Identity(48), data, tmp_path / "whole", 8).get("train")
    seen = []

    @contextmanager
    def work(what, total, done):
        seen.append(done)
        yield lambda done, note: None

    for batches in (1, 2):
        stopped(data, tmp_path / "cache", batches)
    going_on = ReferenceStatistics(Stops(6), data, tmp_path / "cache", 8, work)
    found = going_on.get("train")
    assert (seen, going_on.extractor.left) == ([24], 0)
    assert torch.equal(found.moments.packed, expected.moments.packed)
    assert torch.equal(found.features, expected.features)
    assert list(going_on.path("train").parent.iterdir()) == [going_on.path("train")]


def test_a_damaged_part_is_computed_again_with_a_warning(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEEP_SECONDS", 0)
    stopped(data, tmp_path, 2)
    (part,) = (tmp_path / "references").iterdir()
    cut(part)
    statistics = ReferenceStatistics(Identity(48), data, tmp_path, batch_size=8)
    with pytest.warns(UserWarning, match="is damaged"):
        found = statistics.get("train")
    torch.testing.assert_close(found.moments.cov, data.splits["train"].flatten(1).double().T.cov())
