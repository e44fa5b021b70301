"""Focal losses, CARAFE and masked convolution against formulas and loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmrobust import compat

compat.install()

from mmcv.ops import (
    carafe,
    masked_conv2d,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

TARGET = torch.tensor([0, 2, 3, 1, 3])  # 3 is the background of 3 classes


def logits(seed=0):
    return 3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('gamma', [0.0, 1.5, 2.0])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_sigmoid_focal_loss_is_mmdets(gamma, reduction):
    ours, theirs = logits().requires_grad_(), logits().requires_grad_()
    loss = sigmoid_focal_loss(ours, TARGET, gamma, 0.3, None, reduction)
    one_hot = F.one_hot(TARGET, 4)[:, :3]
    reference = py_sigmoid_focal_loss(
        theirs, one_hot, gamma=gamma, alpha=0.3, reduction='none'
    )
    if reduction == 'sum':
        reference = reference.sum()
    elif reduction == 'mean':  # mmcv means the mean over samples
        reference = reference.sum() / 5
    torch.testing.assert_close(loss, reference)
    loss.sum().backward()
    reference.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_sigmoid_focal_loss_closed_form():
    zero = torch.zeros(1, 2)
    loss = sigmoid_focal_loss(zero, torch.tensor([1]), 2.0, 0.25, None, 'none')
    log2 = math.log(2)
    expected = torch.tensor([[0.75 * 0.25 * log2, 0.25 * 0.25 * log2]])
    torch.testing.assert_close(loss, expected)
    # A confident error keeps its loss and gradient, where float32 has sigmoid = 1.
    wrong = torch.tensor([[40.0]], requires_grad=True)
    loss = sigmoid_focal_loss(wrong, torch.tensor([1]), 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * 40)
    assert wrong.grad.item() == pytest.approx(0.75)


def test_sigmoid_focal_loss_class_weights():
    weight = torch.tensor([2.0, 3.0, 5.0])
    plain = sigmoid_focal_loss(logits(), TARGET, 2.0, 0.25, None, 'none')
    weighted = sigmoid_focal_loss(logits(), TARGET, 2.0, 0.25, weight, 'none')
    factors = torch.tensor([2.0, 5.0, 1.0, 3.0, 1.0])
    torch.testing.assert_close(weighted, plain * factors[:, None])


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_softmax_focal_loss(gamma):
    target = torch.tensor([0, 2, -1, 1, 2])  # -1 is ignored
    weight = torch.tensor([2.0, 3.0, 5.0])
    ours, theirs = logits().requires_grad_(), logits().requires_grad_()
    loss = softmax_focal_loss(ours, target, gamma, 0.3, weight, 'sum')
    p = theirs.softmax(dim=1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    each = -0.3 * (1 - p) ** gamma * p.log() * torch.tensor([2.0, 5.0, 0.0, 3.0, 5.0])
    torch.testing.assert_close(loss, each.sum())
    loss.backward()
    each.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad[2].abs().sum() == 0


def test_softmax_focal_loss_of_a_certain_sample():
    sure = torch.tensor([[90.0, 0.0]], requires_grad=True)
    loss = softmax_focal_loss(sure, torch.tensor([0]), 0.5, 1.0, None, 'sum')
    loss.backward()
    assert loss.item() == 0
    assert sure.grad.abs().sum() == 0


def slow_carafe(features, masks, k, groups, s):
    batch, channels, height, width = features.shape
    out = torch.zeros(batch, channels, height * s, width * s, dtype=features.dtype)
    for c in range(channels):
        group = c // (channels // groups)
        for y in range(height * s):
            for x in range(width * s):
                for i in range(k):
                    for j in range(k):
                        row, column = y // s + i - k // 2, x // s + j - k // 2
                        if 0 <= row < height and 0 <= column < width:
                            weight = masks[:, (group * k + i) * k + j, y, x]
                            out[:, c, y, x] += features[:, c, row, column] * weight
    return out


def test_carafe_is_the_slow_loop():
    generator = torch.Generator().manual_seed(0)
    double = {'generator': generator, 'dtype': torch.float64}
    features = torch.randn(2, 4, 3, 2, **double).requires_grad_()
    masks = torch.randn(2, 18, 6, 4, **double).requires_grad_()
    out = carafe(features, masks, 3, 2, 2)
    expected = slow_carafe(features.detach(), masks.detach(), 3, 2, 2)
    torch.testing.assert_close(out.detach(), expected)
    assert torch.autograd.gradcheck(
        lambda *t: carafe(*t, 3, 2, 2), (features, masks), nondet_tol=0.0
    )


def test_masked_convolution_fills_the_mask_only():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 7, 6, generator=generator)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    bias = torch.randn(4, generator=generator)
    mask = (torch.rand(1, 7, 6, generator=generator) > 0.6).float()
    with torch.no_grad():
        out = masked_conv2d(features, mask, weight, bias, 1)
    expected = F.conv2d(features, weight, bias, padding=1) * mask
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert 0 < mask.sum() < 42
