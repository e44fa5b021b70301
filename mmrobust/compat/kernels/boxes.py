"""Overlaps of boxes, and the suppressions built on them.

Boxes are ``(x1, y1, x2, y2)``; with ``offset=1`` a box is ``x2 - x1 + 1`` wide (the
convention of mmdet 1.x), with ``offset=0`` it is ``x2 - x1`` wide.
"""

from __future__ import annotations

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from .precision import widen

_NAIVE, _LINEAR, _GAUSSIAN = 0, 1, 2
_IOU = 0


def _inclusive(boxes: Tensor, offset: int) -> Tensor:
    """Returns boxes (n, 4) whose plain width and height include ``offset``."""
    boxes = widen(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return boxes


def _areas(boxes: Tensor) -> Tensor:
    """Returns the areas (...) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersections(first: Tensor, second: Tensor) -> Tensor:
    """Returns the common areas (...) of two broadcastable sets of boxes (..., 4)."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Returns the IoU (n,) of one box (4,) with others (n, 4); NaN for 0 / 0."""
    common = _intersections(box, others)
    return common / (_areas(box) + _areas(others) - common)


def bbox_overlaps(
    bboxes1: Tensor,
    bboxes2: Tensor,
    ious: Tensor,
    mode: int,
    aligned: bool,
    offset: int,
) -> None:
    """Writes the overlaps of two sets of boxes.

    Args:
        bboxes1: boxes, (n, 4).
        bboxes2: boxes, (m, 4); m = n if ``aligned``.
        ious: where the overlaps go, (n, m), or (n,) if ``aligned``.
        mode: 0 divides by the union, 1 by the area of the first box.
        aligned: compare box i with box i only.
        offset: 0 or 1, what counts to the width and the height of a box.
    """
    first, second = _inclusive(bboxes1, offset), _inclusive(bboxes2, offset)
    if not aligned:
        first = first[:, None]
    common = _intersections(first, second)
    base = _areas(first)
    base = base + _areas(second) - common if mode == _IOU else base.expand_as(common)
    ious.copy_(common / base.clamp(min=offset))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Suppresses boxes that overlap one of higher score by more than the threshold.

    Args:
        boxes: boxes, (n, 4).
        scores: scores, (n,); of equal scores the earlier box wins.
        iou_threshold: the largest IoU, in [0, 1], that two kept boxes may have.
        offset: 0 or 1, what counts to the width and the height of a box.

    Returns:
        Indices (k,) of the kept boxes, by falling score, int64.
    """
    boxes, scores = _inclusive(boxes, offset), widen(scores)
    if boxes.dtype == torch.float32:
        # mmcv compares with the threshold rounded to float32, torchvision with the
        # unrounded one: an IoU of exactly 0.6 is then above a threshold of 0.6.
        iou_threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lowers the scores of boxes that overlap one of higher score (Soft-NMS).

    Bodla et al., "Soft-NMS: improving object detection with one line of code",
    ICCV 2017. Boxes whose lowered score is below ``min_score`` are dropped; the box
    of the highest score always stays. Of equal scores the earlier box comes first.

    Args:
        boxes: boxes, (n, 4).
        scores: scores, (n,).
        dets: where the k remaining boxes and their scores go, (n, 5); rows from k
            on are left as they are.
        iou_threshold: the overlap in [0, 1] from which 'naive' and 'linear' act.
        sigma: the width of 'gaussian', above 0.
        min_score: the lowest score that stays.
        method: 0 naive (weight 0), 1 linear (weight ``1 - iou``), 2 gaussian
            (weight ``exp(-iou^2 / sigma)``, whatever the overlap).
        offset: 0 or 1, what counts to the width and the height of a box.

    Returns:
        Indices (k,) of the remaining boxes in the order of ``dets``, int64.
    """
    sizes = _inclusive(boxes, offset)
    scores = widen(scores).clone()
    left = torch.arange(len(boxes), device=boxes.device)
    order: list[int] = []
    while len(left):
        # NaN, from 0 / 0 of two boxes without area, must not count as the largest.
        best = int(scores[left].nan_to_num(nan=-torch.inf).argmax())
        chosen = int(left[best])
        dets[len(order), :4] = boxes[chosen]
        dets[len(order), 4] = scores[chosen]
        order.append(chosen)
        left = torch.cat([left[:best], left[best + 1 :]])
        overlaps = _overlaps(sizes[chosen], sizes[left])
        if method == _GAUSSIAN:
            weights = torch.exp(-overlaps.square() / sigma)
        else:
            lowered = 1 - overlaps if method == _LINEAR else overlaps.new_zeros(())
            weights = torch.where(overlaps >= iou_threshold, lowered, 1.0)
        scores[left] *= weights
        left = left[~(scores[left] < min_score)]
    return torch.tensor(order, dtype=torch.long, device=boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups boxes by the kept box that suppresses them.

    Args:
        dets: boxes and scores, (n, 5).
        iou_threshold: the IoU in [0, 1] from which a box is suppressed.

    Returns:
        One group of indices per kept box, each by falling score.
    """
    boxes, scores = widen(dets[:, :4]), dets[:, 4]
    left = scores.argsort(descending=True, stable=True)
    groups = []
    while len(left):
        suppressed = _overlaps(boxes[left[0]], boxes[left]) >= iou_threshold
        suppressed[0] = True
        groups.append(left[suppressed].tolist())
        left = left[~suppressed]
    return groups
