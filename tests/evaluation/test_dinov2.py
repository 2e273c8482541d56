"""DINOv2's features: the architecture of timm, a small one of random weights, fed as they publish
it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm import create_model

from betasigma.errors import UserError
from betasigma.evaluation.choice import Choice, checkpoint_dir, choose
from betasigma.evaluation.features import DINOv2, build
from betasigma.options.evaluation import DINOV2_FILE


class Small(DINOv2):
    """ViT-S/14."""

    architecture = "vit_small_patch14_dinov2"
    dim = 384


@pytest.fixture(scope="module")
def native():
    torch.manual_seed(0)
    network = create_model(Small.architecture, pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        network.pos_embed.normal_(std=0.5)
        for block in network.blocks:  # 1e-5 at the start, which would hide the blocks
            block.ls1.gamma.fill_(0.3)
            block.ls2.gamma.fill_(0.3)
    return network


@pytest.fixture(scope="module")
def file(native, tmp_path_factory):
    path = tmp_path_factory.mktemp("dinov2") / DINOV2_FILE
    torch.save({**native.state_dict(), "mask_token": torch.zeros(1, 384)}, path)
    return path


@pytest.fixture(scope="module")
def small(file):
    return Small(file)


def test_images_are_fed_as_pillow_resizes_them(native, small, images) -> None:
    """Against the network at its native size, whose embedding is interpolated by hand."""
    x = images(2, 0, size=32)
    resized = [Image.fromarray(i.permute(1, 2, 0).numpy()).resize((224, 224), 3) for i in x]
    pixels = torch.from_numpy(np.stack([np.asarray(i) for i in resized])).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        patches = native.patch_embed.proj((pixels - mean) / std).flatten(2).transpose(1, 2)
        tokens = torch.cat([native.cls_token.expand(2, -1, -1), patches], dim=1)
        tokens = tokens + small.network.pos_embed
        for block in native.blocks:
            tokens = block(tokens)
        expected = native.norm(tokens)[:, 0]
    features, logits = small.extract(x)
    assert logits is None
    assert expected.std(0).mean() > 0.05
    # Pillow rounds to bytes between the two directions too
    torch.testing.assert_close(features, expected, rtol=0, atol=0.03)


def test_the_embedding_is_interpolated_by_their_factor(native, small) -> None:
    """Output patch i of 16 lies at (i + ½)·37/16.1 − ½ of 37: bicubic with a = −¾."""
    table = native.pos_embed[0, 1:].reshape(37, 37, -1).double()
    found = small.network.pos_embed[0, 1:].reshape(16, 16, -1)
    torch.testing.assert_close(small.network.pos_embed[:, :1], native.pos_embed[:, :1])

    def weights(i: int) -> tuple[torch.Tensor, list[int]]:
        place = (i + 0.5) * 37 / 16.1 - 0.5
        left = int(np.floor(place))
        distance = torch.tensor([abs(place - (left + k)) for k in (-1, 0, 1, 2)])
        a = -0.75
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        columns = [min(max(left + k, 0), 36) for k in (-1, 0, 1, 2)]
        return torch.where(distance <= 1, near, far).double(), columns

    for i, j in ((0, 0), (3, 11), (15, 15)):
        (u, rows), (v, columns) = weights(i), weights(j)
        expected = torch.einsum("r,c,rcd->d", u, v, table[rows][:, columns])
        torch.testing.assert_close(found[i, j].double(), expected, rtol=0, atol=1e-5)


def test_other_weights_are_refused(file, tmp_path) -> None:
    tensors = torch.load(file, weights_only=True)
    del tensors["norm.bias"]
    torch.save(tensors, tmp_path / "cut.pth")
    with pytest.raises(UserError, match=r"it has no norm\.bias; evaluation\.dinov2_weights wants"):
        Small(tmp_path / "cut.pth")
    with pytest.raises(UserError, match="does not hold the weights of this network"):
        DINOv2(file)  # of the large one


def test_weights_are_given_cached_or_fetched_when_asked(file) -> None:
    assert choose("dinov2", dinov2_weights=file) == Choice("dinov2", str(file))
    with pytest.raises(UserError, match=r"finds no dinov2_vitl14_pretrain\.pth in .*download=true"):
        choose("dinov2")
    assert choose("dinov2", download=True) == Choice("dinov2", download=True)
    with pytest.raises(UserError, match=r"evaluation\.dinov2_weights=/nowhere does not exist"):
        choose("dinov2", dinov2_weights="/nowhere")
    cached = checkpoint_dir() / DINOV2_FILE
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.touch()
    assert choose("dinov2").weights == str(cached)


def test_a_download_that_fails_is_one_sentence(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        UserError, match=r"could not fetch .*; give evaluation\.dinov2_weights=PATH"
    ):
        build(Choice("dinov2", download=True), (3, 32, 32))
