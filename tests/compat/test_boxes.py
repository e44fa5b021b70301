"""Suppression and overlap of boxes against loops in plain Python."""

import math

import pytest
import torch

from mmrobust import compat

compat.install()

from mmcv.ops import (
    batched_nms,
    bbox_overlaps,
    nms,
    nms_match,
    soft_nms,
)


def iou(a, b, offset=0):
    """The overlap of two boxes, written out."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    common = max(width, 0) * max(height, 0)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return common / (area_a + area_b - common)


def slow_nms(boxes, scores, threshold, offset):
    rows = boxes.tolist()
    kept = []
    for i in sorted(range(len(rows)), key=lambda i: -float(scores[i])):
        if all(iou(rows[i], rows[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


def slow_soft_nms(boxes, scores, method, threshold, offset):
    """Soft-NMS with sigma 0.5 and a lowest score of 0.1."""
    rows, left = boxes.tolist(), dict(enumerate(scores.tolist()))
    order, final = [], []
    while left:
        best = max(left, key=lambda i: left[i])
        order.append(best)
        final.append(left.pop(best))
        for i in list(left):
            overlap = iou(rows[best], rows[i], offset)
            if method == 'gaussian':
                left[i] *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= threshold:
                left[i] *= 1 - overlap if method == 'linear' else 0
            if left[i] < 0.1:
                del left[i]
    return order, final


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 20
    sizes = 2 + torch.rand(count, 2, generator=generator) * 20
    scores = torch.rand(count, generator=generator)
    return torch.cat([corners, corners + sizes], dim=1), scores


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.9])
def test_nms_is_brute_force(offset, threshold):
    boxes, scores = random_boxes(60, seed=3)
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == slow_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], dim=1))


def test_nms_offset_decides():
    # 9 of 11 columns in common without, 10 of 12 with the pixel that offset adds.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 5.0], [1.0, 0.0, 11.0, 5.0]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.825, offset=0)[1].tolist() == [0, 1]  # 9 / 11 = 0.818
    assert nms(boxes, scores, 0.825, offset=1)[1].tolist() == [0]  # 10 / 12 = 0.833


def test_nms_ties_threshold_and_limits():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0]] * 2)
    scores = torch.full((4,), 0.5)
    # The overlap is exactly 0.6, and only what is above the threshold goes.
    assert nms(boxes, scores, 0.6)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.59)[1].tolist() == [0]
    assert nms(boxes, scores, 0.6, max_num=1)[1].tolist() == [0]
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert nms(boxes, scores, 0.6, score_threshold=0.25)[1].tolist() == [3, 2]


def test_nms_of_nothing_and_of_arrays():
    dets, kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64
    boxes, scores = random_boxes(10, seed=0)
    dets, kept = nms(boxes.numpy(), scores.numpy(), 0.5)
    assert kept.tolist() == slow_nms(boxes, scores, 0.5, 0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_in_other_precision(dtype):
    boxes, scores = random_boxes(30, seed=5)
    boxes, scores = boxes.round().to(dtype), scores.to(dtype)
    _, kept = nms(boxes, scores, 0.45)
    assert set(kept.tolist()) == set(slow_nms(boxes, scores, 0.45, 0))


@pytest.mark.parametrize('split', [10000, 1])
def test_batched_nms_keeps_classes_apart(split):
    boxes, scores = random_boxes(40, seed=7)
    classes = torch.arange(40) % 3
    config = {'type': 'nms', 'iou_threshold': 0.4, 'split_thr': split}
    dets, kept = batched_nms(boxes, scores, classes, config)
    expected = []
    for label in range(3):
        own = (classes == label).nonzero()[:, 0]
        kept_here = slow_nms(boxes[own], scores[own], 0.4, 0)
        expected += own[kept_here].tolist()
    assert sorted(kept.tolist()) == sorted(expected)
    assert (dets[:-1, 4] >= dets[1:, 4]).all()
    assert torch.equal(dets[:, :4], boxes[kept])


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_is_brute_force(method, offset):
    boxes, scores = random_boxes(40, seed=11)
    dets, kept = soft_nms(
        boxes, scores, 0.3, sigma=0.5, min_score=0.1, method=method, offset=offset
    )
    order, final = slow_soft_nms(boxes, scores, method, 0.3, offset)
    assert kept.tolist() == order
    assert 5 < len(order) < 40
    assert torch.equal(dets[:, :4], boxes[kept])
    torch.testing.assert_close(dets[:, 4], torch.tensor(final))


def test_soft_nms_known():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    dets, kept = soft_nms(boxes, torch.tensor([0.4, 0.8]), 0.3, method='linear')
    assert kept.tolist() == [1, 0]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.8, 0.4 * (1 - 0.5)]))
    dets, kept = soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)


def test_nms_match_groups():
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0, 0.6],
            [50.0, 0.0, 60.0, 10.0, 0.9],
            [0.0, 0.0, 10.0, 9.0, 0.8],
            [0.0, 0.0, 9.0, 10.0, 0.7],
        ]
    )
    groups = [group.tolist() for group in nms_match(boxes, 0.5)]
    assert groups == [[1], [2, 3, 0]]
    assert [group.tolist() for group in nms_match(boxes.numpy(), 0.5)] == groups
    assert nms_match(torch.zeros(0, 5), 0.5) == []


@pytest.mark.parametrize('offset', [0, 1])
def test_bbox_overlaps(offset):
    first, second = random_boxes(6, seed=1)[0], random_boxes(4, seed=2)[0]
    table = [[iou(a, b, offset) for b in second.tolist()] for a in first.tolist()]
    table = torch.tensor(table)
    torch.testing.assert_close(bbox_overlaps(first, second, offset=offset), table)
    aligned = bbox_overlaps(first[:4], second, aligned=True, offset=offset)
    torch.testing.assert_close(aligned, table.diagonal())
    box, half = (
        torch.tensor([[0.0, 0.0, 9.0, 9.0]]),
        torch.tensor([[0.0, 0.0, 9.0, 4.0]]),
    )
    share = bbox_overlaps(half, box, mode='iof', offset=offset)
    assert share.item() == 1.0
    share = bbox_overlaps(box, half, mode='iof', offset=offset)
    assert share.item() == pytest.approx([4 / 9, 0.5][offset])
    assert bbox_overlaps(first, torch.zeros(0, 4)).shape == (6, 0)
