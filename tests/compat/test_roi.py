"""Pooling of regions against closed forms and loops."""

import math

import pytest
import torch

from mmrobust import compat

compat.install()

from mmcv.ops import RoIAlign, RoIPool, roi_align, roi_pool


def ramp(height, width):
    """A feature map of value ``2 x + 3 y + 1`` at pixel (x, y), (1, 1, h, w)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return (2 * x + 3 * y + 1).float()[None, None]


def test_roi_align_of_a_constant():
    features = torch.full((2, 3, 16, 16), 1.5)
    rois = torch.tensor([[0.0, 4.0, 4.0, 20.0, 12.0], [1.0, 0.0, 8.0, 24.0, 24.0]])
    for aligned in (True, False):
        pooled = RoIAlign(7, 0.5, 2, aligned=aligned)(features, rois)
        assert pooled.shape == (2, 3, 7, 7)
        torch.testing.assert_close(pooled, torch.full_like(pooled, 1.5))


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2, 3])
def test_roi_align_of_a_ramp(aligned, ratio):
    # Bilinear samples of a linear map average to its value at the bin's centre.
    x1, y1, x2, y2 = 6.0, 4.0, 22.0, 16.0
    roi = torch.tensor([[0.0, x1, y1, x2, y2]])
    pooled = roi_align(ramp(20, 20), roi, (3, 4), 0.5, ratio, 'avg', aligned)
    shift = 0.5 if aligned else 0.0
    for i in range(3):
        for j in range(4):
            x = x1 * 0.5 - shift + (j + 0.5) * (x2 - x1) * 0.5 / 4
            y = y1 * 0.5 - shift + (i + 0.5) * (y2 - y1) * 0.5 / 3
            assert pooled[0, 0, i, j].item() == pytest.approx(2 * x + 3 * y + 1)


def test_roi_align_gradient():
    rois = torch.tensor(
        [[0, 2.3, 1.1, 9.7, 8.2], [1, 0.4, 0.9, 5.0, 10.6]], dtype=torch.float64
    )
    features = torch.rand(2, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda map_: roi_align(map_, rois, (2, 3), 1.0, 2, 'avg', True), features
    )
    # Inside the map the weights of a bin's samples sum to 1.
    roi_align(features, rois, (2, 3), 1.0, 2, 'avg', True).sum().backward()
    sums = features.grad.sum(dim=(2, 3))
    torch.testing.assert_close(sums, torch.full_like(sums, 6.0))


def test_roi_align_of_no_regions_and_in_half():
    features = torch.rand(1, 2, 8, 8, requires_grad=True)
    pooled = roi_align(features, torch.zeros(0, 5), (7, 7), 1.0, 0, 'avg', True)
    assert pooled.shape == (0, 2, 7, 7)
    pooled.sum().backward()
    assert features.grad.abs().sum() == 0
    roi = torch.tensor([[0.0, 1.0, 1.0, 6.0, 6.0]])
    whole = roi_align(features, roi, (2, 2), 1.0, 2, 'avg', True)
    half = roi_align(features.bfloat16(), roi.bfloat16(), (2, 2), 1.0, 2, 'avg', True)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.01, rtol=0.01)


@pytest.mark.skipif(
    not compat.is_standin_active(), reason='mmcv has its own compiled operators'
)
def test_roi_align_max_is_refused():
    roi = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
    with pytest.raises(RuntimeError, match=r"pool_mode='max'.*mim install mmcv"):
        roi_align(ramp(8, 8), roi, (2, 2), 1.0, 2, 'max', True)


def slow_roi_pool(features, roi, bins, scale):
    """The maxima (c, bins, bins) of one region, with empty bins at 0."""
    image, x1, y1, x2, y2 = roi
    _, channels, height, width = features.shape
    out = torch.zeros(channels, bins, bins)
    step_y, step_x = ((y2 + 1 - y1) * scale / bins, (x2 + 1 - x1) * scale / bins)
    for i in range(bins):
        for j in range(bins):
            rows = range(
                max(math.floor(y1 * scale + i * step_y), 0),
                min(math.ceil(y1 * scale + (i + 1) * step_y), height),
            )
            columns = range(
                max(math.floor(x1 * scale + j * step_x), 0),
                min(math.ceil(x1 * scale + (j + 1) * step_x), width),
            )
            for y in rows:
                for x in columns:
                    value = features[int(image), :, y, x]
                    first = y == rows[0] and x == columns[0]
                    out[:, i, j] = value if first else value.maximum(out[:, i, j])
    return out


def test_roi_pool_is_brute_force():
    features = torch.randn(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    features.requires_grad_()
    rois = torch.tensor(
        [[0.0, 3.0, 2.0, 17.0, 12.0], [1.0, 0.0, 0.0, 23.0, 19.0], [1, 15, 9, 40, 30]]
    )
    pooled = RoIPool(3, 0.5)(features, rois)
    expected = [slow_roi_pool(features.detach(), r, 3, 0.5) for r in rois.tolist()]
    torch.testing.assert_close(pooled.detach(), torch.stack(expected))
    pooled.sum().backward()
    # Each bin that holds pixels sends its gradient to one of them.
    assert features.grad.sum().item() == (pooled != 0).sum().item()
    assert torch.equal(features.grad, features.grad.round())
    assert (features.grad[0].sum(dim=(1, 2)) == 9).all()


def test_roi_pool_gradient():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=generator)
    features.requires_grad_()
    rois = torch.tensor([[1, 0, 0, 5, 5], [0, 2, 1, 4, 3]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda map_: roi_pool(map_, rois, 2), features)


def test_roi_pool_outside_the_map_is_zero():
    features = ramp(4, 4).requires_grad_()
    pooled = roi_pool(features, torch.tensor([[0.0, 20.0, 20.0, 30.0, 30.0]]), 2)
    assert pooled.abs().sum() == 0
    pooled.sum().backward()
    assert features.grad.abs().sum() == 0
