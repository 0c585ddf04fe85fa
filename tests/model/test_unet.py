"""The patcher: its size at the paper's widths, its geometry, and what flows around the trunk."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megatv.config import load_config
from megatv.model.unet import LinearDown, LinearUp, ResBlock, UNetDown, UNetUp, group_norm, time_features

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")


def config(width=24, channels=(16, 32), video=(32, 48)):
    return dataclasses.replace(
        TOY,
        video=dataclasses.replace(TOY.video, height=video[0], width=video[1]),
        model=dataclasses.replace(TOY.model, width=width, heads=2, kv_heads=2, unet_channels=channels),
        sequence=dataclasses.replace(TOY.sequence, context_tokens=20_000),
    )


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def conv(inputs, outputs, side):
    return inputs * outputs * side**2 + outputs


def res(width, skip, time):
    norms = 2 * (width + skip) + 2 * width
    return norms + conv(width + skip, width, 3) + conv(time, width, 1) + conv(width, width, 3)


@pytest.mark.parametrize(
    ("width", "millions", "exact"), [(4096, 252.1, 252_086_544), (3072, 249.5, 249_464_080)]
)
def test_parameter_count_at_the_papers_sizes(width, millions, exact):
    with torch.device("meta"):
        unet = UNetDown(config(width, (512, 1280))), UNetUp(config(width, (512, 1280)))
    time_mlp = conv(256, 1024, 1) + conv(1024, 1024, 1)
    down = conv(16, 512, 3) + 2 * res(512, 0, 1024) + conv(512, 1280, 3) + 2 * res(1280, 0, 1024)
    down += conv(1280, width, 1)
    up = conv(width, 1280, 1) + 3 * res(1280, 1280, 1024) + conv(1280, 512, 2)
    up += 3 * res(512, 512, 1024) + 2 * 512 + conv(512, 16, 3)
    assert parameters(*unet) == time_mlp + down + up == exact
    assert abs(exact / 1e6 - millions) < 0.1


@pytest.mark.parametrize(("down", "up"), [(UNetDown, UNetUp), (LinearDown, LinearUp)])
def test_tokens_are_raster_patches_and_velocities_have_the_latents_shape(down, up):
    torch.manual_seed(0)
    settings = config()
    down, up = down(settings), up(settings)
    x, t = torch.randn(3, 16, 4, 6), torch.rand(3)
    tokens, skips = down(x, t)
    assert tokens.shape == (3, 2 * 3, 24)
    assert up(tokens, skips).shape == x.shape
    # every chunk goes alone, and the first ones may do without skips
    torch.testing.assert_close(down(x[1:2], t[1:2])[0], tokens[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(down(x, t, clean=1), (tokens, skips[1:]), rtol=1e-4, atol=1e-5)


def test_linear_patch_sees_its_own_pixels_only():
    down = LinearDown(config())
    x, t = torch.randn(1, 16, 4, 6), torch.rand(1)
    before = down(x, t)[0]
    x[0, :, 2:4, 4:6] += 1  # second row, third column of patches: token 5 in raster order
    changed = (down(x, t)[0] != before).any(-1)[0]
    assert changed.tolist() == [False] * 5 + [True]


def test_time_reaches_tokens_and_velocities():
    torch.manual_seed(0)
    down, up = UNetDown(config()), UNetUp(config())
    x = torch.randn(1, 16, 4, 6)
    early, late = down(x, torch.tensor([0.1])), down(x, torch.tensor([0.9]))
    assert not torch.allclose(early[0], late[0])
    features = early[1].clone()
    features[:, :32] = late[1][:, :32]  # the same maps, only the time embedding differs
    assert not torch.allclose(up(early[0], early[1]), up(early[0], features))


def test_skips_unflatten_to_what_the_down_path_made():
    down, up = UNetDown(config()), UNetUp(config())
    seen = []
    for module in [down.stem, *down.full_blocks, down.downsample, *down.half_blocks]:
        module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    _, skips = down(torch.randn(2, 16, 4, 6), torch.rand(2))
    time, *maps = up.unflatten(skips)
    assert time.shape == (2, 32)
    for found, expected in zip(maps, seen, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_time_features_tell_thousandths_apart_and_stay_fp32():
    t = torch.linspace(0, 1, 1001)
    features = time_features(t)
    assert features.shape == (1001, 256)
    assert features.dtype == torch.float32
    assert (features[1:] - features[:-1]).norm(dim=1).min() > 0.1
    assert time_features(t.bfloat16()).dtype == torch.float32
    # the closest bf16 neighbours of 1 are 2^-8 apart: t must not be rounded before it gets here
    torch.testing.assert_close(features[-1, 0], torch.tensor(1000.0).cos())


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 1), (24, 1), (64, 4), (128, 8), (512, 32), (1280, 32), (1792, 32)]
)
def test_group_norm_suits_the_width(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_a_block_by_its_definition():
    """x + conv2(silu(norm2(conv1(silu(norm1([x, skip]))) + time))): the time before the second norm."""
    torch.manual_seed(0)
    block = ResBlock(32, 16, 8)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.2)
    x, time, skip = torch.randn(2, 32, 4, 6), torch.randn(2, 8), torch.randn(2, 16, 4, 6)

    def half(h, norm, conv):
        h = F.group_norm(h, norm.num_groups, norm.weight, norm.bias)
        return F.conv2d(h * h.sigmoid(), conv.weight, conv.bias, padding=1)

    h = half(torch.cat([x, skip], 1), block.norm1, block.conv1)
    h = h + (time @ block.time.weight.T + block.time.bias)[:, :, None, None]
    torch.testing.assert_close(block(x, time, skip), x + half(h, block.norm2, block.conv2))
