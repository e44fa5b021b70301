"""Deformable convolution and attention against plain ones, shifts and loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmrobust import compat

compat.install()

from mmcv.ops import (
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)


def rand(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


GEOMETRIES = [(1, 1, 1, 1, 1), (2, 1, 1, 1, 2), (1, 2, 2, 2, 1), (2, 0, 1, 2, 2)]
"""Stride, padding, dilation, groups of channels and groups of offsets."""


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_zero_offset_is_a_convolution(geometry):
    stride, padding, dilation, groups, offset_groups = geometry
    x, weight = rand(2, 4, 9, 8), rand(6, 4 // groups, 3, 2, seed=1)
    bias = rand(6, seed=2)
    plain = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    offset = torch.zeros(2, 2 * 6 * offset_groups, *plain.shape[2:])
    convolved = deform_conv2d(x, offset, weight, *geometry)
    torch.testing.assert_close(convolved, plain)
    mask = torch.ones(2, 6 * offset_groups, *plain.shape[2:])
    full = modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
    torch.testing.assert_close(full, plain + bias[:, None, None])
    half = modulated_deform_conv2d(x, offset, 0.5 * mask, weight, None, *geometry)
    torch.testing.assert_close(half, 0.5 * plain)


def test_whole_offset_is_a_shift():
    x, weight = rand(1, 3, 8, 10), rand(4, 3, 3, 3, seed=1)
    offset = torch.zeros(1, 18, 8, 10)
    offset[:, 0::2], offset[:, 1::2] = 2, -1  # down by 2, left by 1
    shifted = torch.zeros_like(x)
    shifted[:, :, :-2, 1:] = x[:, :, 2:, :-1]
    moved = deform_conv2d(x, offset, weight, 1, 1)
    plain = F.conv2d(shifted, weight, padding=1)
    # The borders differ: there the shifted map has lost pixels it would need.
    inner = (..., slice(1, -3), slice(2, -1))
    torch.testing.assert_close(moved[inner], plain[inner])
    assert (moved - F.conv2d(x, weight, padding=1)).abs().mean() > 0.1


def test_half_pixel_offset_is_a_mean():
    x, weight = rand(1, 1, 5, 5), torch.ones(1, 1, 1, 1)
    offset = torch.zeros(1, 2, 5, 5)
    offset[:, 1] = 0.5
    moved = deform_conv2d(x, offset, weight)
    expected = (x[..., :-1] + x[..., 1:]) / 2
    torch.testing.assert_close(moved[..., :-1], expected)
    torch.testing.assert_close(moved[..., -1], x[..., -1] / 2)  # zeros beyond


@pytest.mark.parametrize('geometry', GEOMETRIES[:2] + GEOMETRIES[3:])
def test_gradients(geometry):
    stride, padding, dilation, groups, offset_groups = geometry
    double = torch.float64
    x, weight = rand(2, 4, 5, 4, dtype=double), rand(2, 4 // groups, 2, 2, dtype=double)
    size = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    # Away from whole numbers, where bilinear sampling has no derivative.
    offset = 0.3 + 0.2 * torch.rand(2, 8 * offset_groups, *size, dtype=double)
    mask = torch.rand(2, 4 * offset_groups, *size, dtype=double)
    bias = rand(2, dtype=double)
    inputs = [t.requires_grad_() for t in (x, offset, weight)]
    assert torch.autograd.gradcheck(
        lambda *t: deform_conv2d(*t, *geometry), inputs, fast_mode=True
    )
    inputs = [t.requires_grad_() for t in (x, offset, mask, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda *t: modulated_deform_conv2d(*t, *geometry), inputs, fast_mode=True
    )


def slow_modulated(x, offset, mask, weight, padding):
    """Deformable convolution v2 of one image, with addresses as the C++ code has them.

    Offsets and masks are lists of numbers to it, whose sizes it does not know.
    """
    channels, height, width = x.shape
    side = weight.shape[-1]
    rows, columns = (n + 2 * padding - side + 1 for n in (height, width))
    offset, mask = offset.flatten(), mask.flatten()

    def pixel(channel, y, x_):
        total = x.new_zeros(())
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x_), math.floor(x_) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - (y - row).abs()) * (1 - (x_ - column).abs())
                    total = total + share * x[channel, row, column]
        return total

    values = []
    for out in range(len(weight)):
        for r in range(rows):
            for c in range(columns):
                total = x.new_zeros(())
                for k in range(side * side):
                    i, j = divmod(k, side)
                    place = r * columns + c
                    y = r - padding + i + offset[2 * k * rows * columns + place]
                    x_ = c - padding + j + offset[(2 * k + 1) * rows * columns + place]
                    share = mask[k * rows * columns + place]
                    for channel in range(channels):
                        sample = pixel(channel, y, x_)
                        total = total + weight[out, channel, i, j] * share * sample
                values.append(total)
    return torch.stack(values).view(len(weight), rows, columns)


@pytest.mark.parametrize('larger', [0, 2])
def test_offsets_of_a_larger_map_are_read_as_the_compiled_kernel_does(larger):
    """DyHead gives the offsets of a map to the convolution of the next smaller one."""
    shape = (2, 18, 3 + larger, 4 + larger)
    inputs = [
        rand(2, 2, 3, 4, dtype=torch.float64),
        rand(*shape, seed=1, dtype=torch.float64),
        rand(2, 9, *shape[2:], seed=2, dtype=torch.float64),
        rand(2, 2, 3, 3, seed=3, dtype=torch.float64),
    ]
    grad_output = rand(2, 2, 3, 4, seed=4, dtype=torch.float64)
    fast_inputs = [value.clone().requires_grad_() for value in inputs]
    fast = modulated_deform_conv2d(*fast_inputs, None, 1, 1, 1, 1, 1)
    fast.backward(grad_output)
    slow_inputs = [value.clone().requires_grad_() for value in inputs]
    x, offset, mask, weight = slow_inputs
    slow = torch.stack(
        [slow_modulated(x[b], offset[b], mask[b], weight, 1) for b in range(2)]
    )
    slow.backward(grad_output)
    torch.testing.assert_close(fast, slow)
    for one, two in zip(fast_inputs, slow_inputs, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_modules_start_as_convolutions():
    x = rand(2, 4, 6, 6)
    plain = DeformConv2dPack(4, 3, 3, padding=1)
    torch.testing.assert_close(plain(x), F.conv2d(x, plain.weight, padding=1))
    modulated = ModulatedDeformConv2dPack(4, 3, 3, padding=1)
    expected = 0.5 * F.conv2d(x, modulated.weight, padding=1)  # sigmoid(0)
    torch.testing.assert_close(
        modulated(x), expected + modulated.bias[:, None, None], atol=1e-5, rtol=1e-5
    )
    modulated(x).sum().backward()
    assert modulated.bias.grad.tolist() == [72.0] * 3


LEVELS = [(4, 5), (2, 3)]


def attention_inputs(dtype):
    """Value, shapes, starts, locations and weights of 2 images, 3 queries, 2 heads."""
    shapes = torch.tensor(LEVELS)
    starts = torch.tensor([0, 20])
    value = rand(2, 26, 2, 3, dtype=dtype)
    generator = torch.Generator().manual_seed(4)
    # From outside on the left to outside on the right.
    locations = torch.rand(2, 3, 2, 2, 2, 2, generator=generator, dtype=dtype)
    locations = 1.4 * locations - 0.2
    weights = rand(2, 3, 2, 4, seed=5, dtype=dtype).softmax(-1)
    return value, shapes, starts, locations, weights.view(2, 3, 2, 2, 2)


def pixel(value, level, y, x):
    height, width = LEVELS[level]
    if not (0 <= y < height and 0 <= x < width):
        return torch.zeros(value.shape[-1], dtype=value.dtype)
    return value[(0, 20)[level] + y * width + x]


def slow_attention(value, locations, weights):
    out = torch.zeros(2, 3, 2, 3, dtype=value.dtype)
    for b, q, head, level, point in torch.cartesian_prod(
        *(torch.arange(n) for n in (2, 3, 2, 2, 2))
    ).tolist():
        height, width = LEVELS[level]
        x, y = locations[b, q, head, level, point].tolist()
        x, y = x * width - 0.5, y * height - 0.5
        left, top = math.floor(x), math.floor(y)
        for row in (top, top + 1):
            for column in (left, left + 1):
                share = (1 - abs(x - column)) * (1 - abs(y - row))
                sample = pixel(value[b, :, head], level, row, column)
                weight = weights[b, q, head, level, point]
                out[b, q, head] += share * weight * sample
    return out.flatten(2)


def test_attention_is_the_slow_loop():
    value, shapes, starts, locations, weights = attention_inputs(torch.float64)
    out = MultiScaleDeformableAttnFunction.apply(
        value, shapes, starts, locations, weights, 64
    )
    assert out.shape == (2, 3, 6)
    torch.testing.assert_close(out, slow_attention(value, locations, weights))
    reference = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(out, reference)


def test_attention_gradients():
    value, shapes, starts, locations, weights = attention_inputs(torch.float64)
    inputs = [t.detach().requires_grad_() for t in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, loc, w: MultiScaleDeformableAttnFunction.apply(
            v, shapes, starts, loc, w, 64
        ),
        inputs,
    )


def test_attention_in_half_precision():
    value, shapes, starts, locations, weights = attention_inputs(torch.float32)
    whole = slow_attention(value, locations, weights)
    value = value.half().requires_grad_()
    out = MultiScaleDeformableAttnFunction.apply(
        value, shapes, starts, locations, weights, 64
    )
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), whole, atol=0.02, rtol=0.02)
    out.sum().backward()
    assert value.grad.dtype == torch.float16
    assert value.grad.isfinite().all()
