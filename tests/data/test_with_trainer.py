"""The datamodule under Lightning's Trainer: steps, accumulation, resuming, devices' shares."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from betasigma.data.datamodule import ImageDataModule
from betasigma.data.order import subset
from betasigma.errors import UserError


class Recorder(pl.LightningModule):
    """Learns next to nothing, and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        assert batch["step"] == self.global_step
        assert isinstance(batch["index"], np.ndarray)
        self.seen.append((batch["step"], batch["index"].tolist(), batch["x"].clone()))
        return self.layer(batch["x"].mean().reshape(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["index"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, steps, accumulate=1, **options):
    return pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        **({"limit_val_batches": 0, "enable_checkpointing": False} | options),
    )


def digits(**options):
    return ImageDataModule(
        "digits", **({"batch_size": 200, "flip": True, "dequantize": True} | options)
    )


def fit(tmp_path, steps, data, accumulate=1, ckpt_path=None, **options):
    module = Recorder()
    fitted = trainer(tmp_path, steps, accumulate, **options)
    fitted.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, fitted


def same(a, b):
    assert len(a) == len(b)
    for (step_a, index_a, x_a), (step_b, index_b, x_b) in zip(a, b, strict=True):
        assert (step_a, index_a) == (step_b, index_b)
        assert torch.equal(x_a, x_b)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_equals_never_having_stopped(tmp_path, accumulate):
    """Over an epoch's end: 1437 images are 7.2 steps."""
    whole, _ = fit(tmp_path, 10, digits(), accumulate)
    first, stopped = fit(tmp_path, 6, digits(), accumulate)
    stopped.save_checkpoint(tmp_path / "six.ckpt")
    second, _ = fit(tmp_path, 10, digits(), accumulate, ckpt_path=tmp_path / "six.ckpt")
    assert [step for step, _, _ in second.seen[::accumulate]] == [6, 7, 8, 9]
    same(whole.seen, first.seen + second.seen)


def test_accumulation_divides_the_same_batch(tmp_path):
    whole, _ = fit(tmp_path, 3, digits())
    parts, _ = fit(tmp_path, 3, digits(), accumulate=4)
    assert len(parts.seen) == 12
    for step in range(3):
        pieces = torch.cat([x for s, _, x in parts.seen if s == step])
        assert torch.equal(pieces, whole.seen[step][2])


def test_the_order_goes_on_across_lightning_s_epochs(tmp_path):
    whole, _ = fit(tmp_path, 6, digits())
    limited, _ = fit(tmp_path, 6, digits(), limit_train_batches=2)
    same(whole.seen, limited.seen)


def test_validation_every_few_steps(tmp_path):
    data = digits(val_size=250)
    module, _ = fit(tmp_path, 4, data, limit_val_batches=1.0, val_check_interval=2)
    assert np.concatenate(module.validated).tolist() == subset(360, 250).tolist() * 2
    plain, _ = fit(tmp_path, 4, digits())
    same(module.seen, plain.seen)


def test_streaming_under_the_trainer(tmp_path, write_image):
    for i in range(20):
        write_image(tmp_path / "images" / f"{i}.png", (12, 12), i)

    def data(in_memory):
        return ImageDataModule(
            "image_folder",
            tmp_path / "images",
            batch_size=8,
            image_size=8,
            workers=1,
            in_memory=in_memory,
        )

    whole, _ = fit(tmp_path, 6, data(True))
    _, stopped = fit(tmp_path, 3, data(False))
    stopped.save_checkpoint(tmp_path / "three.ckpt")
    rest, _ = fit(tmp_path, 6, data(False), ckpt_path=tmp_path / "three.ckpt")
    same(whole.seen[3:], rest.seen)


def test_batches_that_cannot_be_divided(tmp_path):
    with pytest.raises(UserError, match=r"batch_size=200 .*accumulate=3 equal micro-batches"):
        fit(tmp_path, 1, digits(), accumulate=3)


class FakeTrainer:
    """What the datamodule asks of a trainer, as one of several devices sees it."""

    accumulate_grad_batches = 2
    world_size = 2
    global_step = 5

    def __init__(self, rank):
        self.global_rank = rank
        self.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})()


def test_devices_share_the_same_batch():
    parts = {}
    for rank in range(2):
        data = digits(val_size=90)
        data.trainer = FakeTrainer(rank)
        batches = iter(data.train_dataloader())
        for _ in range(2):
            batch = data.prepare_batch(next(batches))
            assert batch["step"] == 5
            assert batch["index"].shape == (50,)
            parts |= dict(zip(batch["index"].tolist(), batch["x"], strict=True))
        parts |= {1000 + i: None for b in data.val_dataloader() for i in b["index"].tolist()}
    alone = iter(digits().train_dataloader())
    for _ in range(6):
        batch = next(alone)
    x = digits().prepare_batch(batch)["x"]
    assert torch.equal(torch.stack([parts[i] for i in range(200)]), x)
    assert sorted(i - 1000 for i in parts if i >= 1000) == subset(360, 90).tolist()
