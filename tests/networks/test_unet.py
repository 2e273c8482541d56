"""The UNet against diffusers' UNet2DModel, and what the contract of the networks promises."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from betasigma.errors import UserError
from betasigma.networks.layers import Fourier, Positional
from betasigma.networks.unet import (
    Attention,
    Downsample,
    Dropout,
    GroupNorm,
    ResidualBlock,
    UNet,
    Upsample,
)
from betasigma.options.networks import UNetOptions

HO_CIFAR10 = {"in_channels": 3, "image_size": 32}

SMALL = {
    "in_channels": 3,
    "image_size": 8,
    "channels": 16,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "dropout": 0.0,
}


def small(**changes: Any) -> UNet:
    """A small UNet whose zero-initialised layers are random too, so that every part matters."""
    torch.manual_seed(0)
    net = UNet(**{**SMALL, **changes})
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def inputs(batch: int = 4, channels: int = 3, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, size, size, generator=generator)
    return x, torch.linspace(0, 999, batch)


def diffusers_twin(
    channels: tuple[int, ...], blocks: int, attention: tuple[bool, ...], **config: Any
) -> UNet2DModel:
    """UNet2DModel with the choices that google/ddpm-cifar10-32 makes."""
    torch.manual_seed(0)
    return UNet2DModel(
        block_out_channels=channels,
        layers_per_block=blocks,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        act_fn="silu",
        center_input_sample=False,
        time_embedding_type="positional",
        **config,
    ).eval()


def from_diffusers(theirs: UNet2DModel, net: UNet) -> dict[str, Tensor]:
    """The weights of ``theirs`` under the names of ``net``."""
    names = {
        "enter": "conv_in",
        "conditioning.hidden": "time_embedding.linear_1",
        "conditioning.out": "time_embedding.linear_2",
        "leave.0": "conv_norm_out",
        "leave.2": "conv_out",
        "middle.0": "mid_block.resnets.0",
        "middle.0.attention": "mid_block.attentions.0",
        "middle.1": "mid_block.resnets.1",
    }
    for side in ("down", "up"):
        level = block = 0
        for i, layer in enumerate(getattr(net, side)):
            if isinstance(layer, Downsample | Upsample):
                names[f"{side}.{i}"] = f"{side}_blocks.{level}.{side}samplers.0"
                level, block = level + 1, 0
            else:
                names[f"{side}.{i}"] = f"{side}_blocks.{level}.resnets.{block}"
                names[f"{side}.{i}.attention"] = f"{side}_blocks.{level}.attentions.{block}"
                block += 1
    leaves = {
        "shift": "time_emb_proj",
        "shortcut": "conv_shortcut",
        "norm": "group_norm",
        "out": "to_out.0",
    }
    weights = theirs.state_dict()
    mapped = {}
    for name in net.state_dict():
        path, kind = name.rsplit(".", 1)
        if path in names:
            mapped[name] = weights[f"{names[path]}.{kind}"]
            continue
        parent, leaf = path.rsplit(".", 1)
        if leaf == "qkv":
            parts = [weights[f"{names[parent]}.to_{part}.{kind}"] for part in "qkv"]
            mapped[name] = torch.cat(parts)
        else:
            mapped[name] = weights[f"{names[parent]}.{leaves.get(leaf, leaf)}.{kind}"]
    return mapped


def assert_same_function(net: UNet, theirs: UNet2DModel, x: Tensor, times: list[int]) -> None:
    net.load_state_dict(from_diffusers(theirs, net))
    net.eval()
    for time in times:
        c_noise = torch.full((len(x),), float(time))
        with torch.no_grad():
            ours, expected = net(x, c_noise), theirs(x, time).sample
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_is_the_network_of_ddpm_cifar10() -> None:
    net = UNet(**HO_CIFAR10)
    theirs = diffusers_twin(
        (128, 256, 256, 256),
        blocks=2,
        attention=(False, True, False, False),
        sample_size=32,
        attention_head_dim=None,
    )
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
    assert_same_function(net, theirs, inputs(batch=2, size=32)[0], times=[0, 999])


def test_heads_and_other_widths_are_those_of_diffusers() -> None:
    net = UNet(
        1,
        28,
        channels=32,
        multipliers=(1, 3, 2),
        blocks=1,
        attention=(14, 7),
        head_channels=16,
        norm_groups=8,
    )
    theirs = diffusers_twin(
        (32, 96, 64),
        blocks=1,
        attention=(False, True, True),
        sample_size=28,
        in_channels=1,
        out_channels=1,
        attention_head_dim=16,
        norm_num_groups=8,
    )
    assert_same_function(net, theirs, inputs(channels=1, size=28)[0], times=[0, 37, 999])


def test_each_sample_has_its_own_noise_level() -> None:
    net = small().eval()
    x, c_noise = inputs()
    together = net(x, c_noise)
    for i in range(len(x)):
        torch.testing.assert_close(net(x[i : i + 1], c_noise[i : i + 1]), together[i : i + 1])
    assert not torch.allclose(net(x, c_noise), net(x, c_noise + 0.5), atol=1e-3)


@pytest.mark.parametrize("in_channels", [1, 3])
def test_output_channels(in_channels: int) -> None:
    x, c_noise = inputs(channels=in_channels)
    assert small(in_channels=in_channels)(x, c_noise).shape == x.shape
    net = small(in_channels=in_channels, out_channels=2 * in_channels)
    assert net(x, c_noise).shape == (4, 2 * in_channels, 8, 8)


def test_starts_as_zero_with_blocks_as_identities() -> None:
    torch.manual_seed(0)
    net = UNet(**SMALL)
    x, c_noise = inputs()
    assert not net(x, c_noise).any()
    block = net.middle[0]
    h, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 64)
    assert torch.equal(block(h, emb), h)
    torch.manual_seed(0)
    qkv = Attention(128, 1, partial(GroupNorm, 32)).qkv
    for weight, fans in [
        (UNet(**HO_CIFAR10).down[0].conv1.weight, 9 * 128),
        (qkv.weight[:128], 128),
        (qkv.weight[256:], 128),
    ]:
        bound = (3 / fans) ** 0.5
        assert weight.abs().max() <= bound
        assert weight.var().item() == pytest.approx(1 / fans, rel=0.05)


@pytest.mark.parametrize(("sides", "attention"), [((16, 32), (8,)), ((24, 8), (4,))])
def test_images_that_are_not_square(sides: tuple[int, int], attention: tuple[int, ...]) -> None:
    """Attention stands where the lesser side has the resolution."""
    theirs = diffusers_twin(
        (16, 32),
        blocks=1,
        attention=(False, True),
        sample_size=sides,
        attention_head_dim=None,
        norm_num_groups=4,
    )
    x = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(1))
    net = UNet(3, sides, 3, 16, (1, 2), 1, attention, norm_groups=4)
    assert_same_function(net, theirs, x, times=[0, 999])


def test_a_side_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(UserError, match=r"8x6 images allow at most 2 levels \(6, 3\)"):
        small(image_size=(8, 6), multipliers=(1, 2, 2), attention=())
    with pytest.raises(UserError, match=r"16x10 images allow at most 2 levels \(10, 5\)"):
        UNetOptions(channels=8, multipliers=[1, 2, 2], attention=[]).check_sides(16, 10)


def test_labels_and_the_null_class() -> None:
    net = small(num_classes=3).eval()
    x, c_noise = inputs()
    null = torch.full((4,), 3)
    assert torch.equal(net(x, c_noise), net(x, c_noise, null))
    y = torch.tensor([0, 1, 2, 3])
    labelled = net(x, c_noise, y)
    assert torch.equal(labelled[3], net(x, c_noise)[3])
    for i in range(3):
        assert not torch.allclose(labelled[i], net(x, c_noise)[i], atol=1e-3)
    net(x, c_noise, torch.tensor([0, 0, 2, 2])).sum().backward()
    used = net.conditioning.labels.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True, False, True, False]


def test_without_a_null_class_every_image_has_a_label() -> None:
    net = small(num_classes=3, null_class=False).eval()
    assert len(net.conditioning.labels.weight) == 3
    x, c_noise = inputs()
    with pytest.raises(UserError, match=r"network\.null_class=false.*labels=all"):
        net(x, c_noise)
    assert net(x, c_noise, torch.tensor([0, 1, 2, 0])).shape == x.shape


def test_labels_need_classes() -> None:
    x, c_noise = inputs()
    with pytest.raises(UserError, match=r"network\.num_classes=0"):
        small()(x, c_noise, torch.zeros(4, dtype=torch.int64))


def test_unconditional_ignores_the_noise_level_but_not_labels() -> None:
    x, c_noise = inputs()
    net = small(conditional=False).eval()
    assert torch.equal(net(x, c_noise), net(x, c_noise + 100))
    assert not any("shift" in name or "conditioning" in name for name in net.state_dict())

    net = small(conditional=False, num_classes=2).eval()
    y = torch.tensor([0, 1, 0, 1])
    assert torch.equal(net(x, c_noise, y), net(x, c_noise + 100, y))
    assert not torch.allclose(net(x, c_noise, y), net(x, c_noise, 1 - y), atol=1e-3)


def test_heads() -> None:
    x, c_noise = inputs()
    one, four = small().eval(), small(heads=4).eval()
    by_width = small(head_channels=8).eval()
    assert by_width.middle[0].attention.heads == 4
    assert torch.equal(four(x, c_noise), by_width(x, c_noise))
    assert not torch.allclose(one(x, c_noise), four(x, c_noise), atol=1e-4)


def test_attention_stands_where_it_is_configured() -> None:
    def attends(net: UNet) -> list[bool]:
        layers = [*net.down, *net.middle, *net.up]
        return [layer.attention is not None for layer in layers if isinstance(layer, ResidualBlock)]

    #                                          down          middle        up
    assert attends(small()) == [False, True, True, False, True, True, False, False]
    assert attends(small(attention=(8,))) == [True, False, True, False, False, False, True, True]
    assert not any(attends(small(attention=())))


def test_fused_and_stepwise_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small(heads=2).eval()
    x, c_noise = inputs()
    stepwise = net(x, c_noise)
    monkeypatch.setattr("betasigma.networks.unet.attend", F.scaled_dot_product_attention)
    torch.testing.assert_close(net(x, c_noise), stepwise)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("given_by", ["input", "weights"])
def test_channels_last_is_kept_from_end_to_end(given_by: str, in_channels: int) -> None:
    net = small(in_channels=in_channels, out_channels=3, dropout=0.5)
    x, c_noise = inputs(channels=in_channels)
    torch.manual_seed(0)
    expected = net.eval()(x, c_noise)
    if given_by == "input":
        x = x.to(memory_format=torch.channels_last)
    else:
        net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x, c_noise), expected)

    seen = []
    for module in net.modules():
        kinds = ResidualBlock | Attention | GroupNorm | Dropout | nn.Conv2d | Upsample
        if isinstance(module, kinds):
            module.register_forward_hook(lambda module, args, out: seen.append(out))
    out = net.train()(x, c_noise)
    assert len(seen) > 50
    for features in (*seen, out):
        assert features.stride(1) == 1 or features.shape[2:] == (1, 1)
        assert features.is_contiguous(memory_format=torch.channels_last)


def test_bf16_autocast_follows_fp32() -> None:
    net = small(channels=32).eval()
    x, c_noise = inputs()
    exact = net(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, c_noise)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() <= 0.02 * exact.norm()


def test_normalisation_of_bf16_has_fp32_statistics() -> None:
    norm = GroupNorm(32, 128)
    # In bfloat16 a mean of 10 is off by up to 0.03, 8 times the rounding of the output.
    x = (10.013 + torch.randn(2, 128, 8, 8)).bfloat16()
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.autocast("cpu", torch.bfloat16):
            y = norm(x.to(memory_format=layout))
        assert y.dtype == torch.bfloat16
        expected = F.group_norm(x.double(), 32, eps=1e-6)
        assert ((y - expected).abs() <= 2**-8 * expected.abs() + 1e-4).all()


@pytest.mark.parametrize("shape", [(3, 96, 7, 5), (70, 32, 28, 28), (2, 128, 1, 1)])
def test_normalisation_without_a_gradient_is_that_of_each_image(shape: tuple[int, ...]) -> None:
    norm = GroupNorm(32, shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (1 + 2 * torch.randn(shape)).to(memory_format=torch.channels_last)
    expected = F.group_norm(
        x.double(), norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps
    )
    with torch.no_grad():
        y = norm(x)
        alone = torch.cat([norm(image) for image in x.split(1)])
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(y, alone)


@pytest.mark.parametrize(
    ("width", "groups"),
    [(128, 32), (384, 32), (48, 12), (40, 10), (36, 9), (32, 8), (14, 2), (3, 1)],
)
def test_groups_divide_the_width_and_have_four_channels(width: int, groups: int) -> None:
    assert GroupNorm(32, width).num_groups == groups


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout(layout: torch.memory_format, dtype: torch.dtype) -> None:
    dropout = Dropout(0.3)
    x = torch.ones(5, 31, 17, 17, dtype=dtype).to(memory_format=layout)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x))
    assert not torch.equal(first, second)
    assert first.stride() == x.stride()
    kept = first != 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    assert kept.float().mean((0, 2, 3)).std().item() < 0.03
    torch.testing.assert_close(first[kept].float().mean().item(), 1 / 0.7, rtol=4e-3, atol=0)
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_acts_in_training_only() -> None:
    net = small(dropout=0.5)
    x, c_noise = inputs()
    assert not torch.equal(net(x, c_noise), net(x, c_noise))
    assert torch.equal(net.eval()(x, c_noise), net(x, c_noise))


def test_upsampling_is_nearest_neighbour_and_convolution() -> None:
    layer = Upsample(6).double()
    nn.init.normal_(layer.conv.bias)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x, None), layer.conv(F.interpolate(x, scale_factor=2.0)))


def test_checkpointing_gives_the_same_gradients() -> None:
    x, c_noise = inputs()
    gradients = []
    for checkpoint in (False, True):
        net = small(dropout=0.5, checkpoint=checkpoint)
        torch.manual_seed(5)
        net(x, c_noise).square().mean().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_checkpointing_recomputes_instead_of_keeping() -> None:
    x, c_noise = inputs()
    calls = []
    net = small(checkpoint=True)
    net.middle[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    out = net(x, c_noise)
    assert len(calls) == 1
    out.sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        net(x, c_noise)
    assert len(calls) == 3


def test_second_derivatives_exist() -> None:
    net = small(image_size=4, attention=(4, 2)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    c_noise = torch.tensor([0.0, 3.0], dtype=torch.float64)
    v = torch.randn_like(x)
    (jv,) = torch.autograd.grad(net(x, c_noise), x, v, create_graph=True)
    (jv * v).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert net.middle[0].attention.qkv.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    net = small(dropout=0.1)
    x, c_noise = inputs()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        expected = net(x, c_noise)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(x, c_noise), expected)


def test_positional_embedding_is_that_of_ho_et_al() -> None:
    features = Positional(8)(torch.tensor([0.0, 2.5]))
    frequencies = 10_000.0 ** (-torch.arange(4) / 3)
    expected = torch.cat([(2.5 * frequencies).sin(), (2.5 * frequencies).cos()])
    torch.testing.assert_close(features[1], expected)
    assert features[0].tolist() == [0.0] * 4 + [1.0] * 4


def test_fourier_frequencies_are_fixed_saved_and_scaled() -> None:
    net = small(embedding="fourier", fourier_scale=4.0).eval()
    assert "conditioning.features.frequencies" in net.state_dict()
    assert "conditioning.features.frequencies" not in dict(net.named_parameters())
    other = UNet(**SMALL, embedding="fourier").eval()
    other.load_state_dict(net.state_dict())
    x, _ = inputs()
    c_noise = torch.linspace(-5, 5, 4)
    assert torch.equal(other(x, c_noise), net(x, c_noise))
    turns, radians = Fourier(10_000, 4.0), Fourier(10_000, 4.0, radians=True)
    for features in (turns, radians):
        assert features.turns.std().item() == pytest.approx(4.0, rel=0.05)
    radians.frequencies = 2 * torch.pi * turns.frequencies
    c = torch.tensor([0.3, -2.0])
    torch.testing.assert_close(radians(c), turns(c), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 28, "multipliers": (1, 2, 2, 2)}, r"network\.multipliers has 4 levels.*"
         r"28x28 images allow at most 3 levels \(28, 14, 7\).*divisible by 8"),
        ({"multipliers": ()}, r"network\.multipliers=\[\] .*at least 1 item"),
        ({"multipliers": (1, 0)}, r"network\.multipliers\[1\]=0 must be at least 1"),
        ({"attention": (4, 16)}, r"network\.attention=\[4, 16\].*16, which never occurs.*8, 4"),
        ({"heads": 3}, r"network\.heads=3 .*32 channels.*1, 2, 4, 8, 16, 32"),
        ({"head_channels": 5}, r"network\.head_channels=5 .*1, 2, 4, 8, 16, 32"),
        ({"heads": 2, "head_channels": 8}, r"network\.heads=2 and network\.head_channels=8"),
        ({"heads": 0}, r"network\.heads=0 .*at least 1"),
        ({"head_channels": 0}, r"network\.head_channels=0 .*at least 1"),
        ({"channels": 15}, r"network\.channels=15 must be a multiple of 2"),
        ({"blocks": 0}, r"network\.blocks=0 .*at least 1"),
        ({"dropout": 1.0}, r"network\.dropout=1\.0 must be below 1"),
        ({"num_classes": -1}, r"network\.num_classes=-1 .*at least 0"),
        ({"embedding": "learned"}, r"network\.embedding=learned must be 'positional', 'fourier'"),
        (
            {"embedding": "fourier", "fourier_scale": 0.0},
            r"network\.fourier_scale=0\.0 must be above 0",
        ),
        ({"norm_groups": 0}, r"network\.norm_groups=0 .*at least 1"),
        ({"in_channels": 0}, r"network\.in_channels=0 .*at least 1"),
        ({"out_channels": 0}, r"network\.out_channels=0 .*at least 1"),
        ({"image_size": 0}, r"network\.image_size=0 .*at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        UNet(**{**SMALL, **changes})
    assert "\n" not in str(error.value)


def test_heads_need_to_divide_only_where_there_is_attention() -> None:
    UNet(**{**SMALL, "heads": 3, "attention": ()})
    UNet(3, 8, channels=8, multipliers=(1, 3), attention=(4,), heads=3)


def test_limits_are_checked_without_torch() -> None:
    code = "import sys, betasigma.options.networks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
