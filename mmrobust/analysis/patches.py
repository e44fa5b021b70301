"""What patches do to the objects at them and further away, and what is seen on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .average_precision import mean_precision, precision_by
from .detections import Detections, GroundTruth, box_areas, pair
from .error_types import FOREGROUND_IOU, SCORE_THR
from .matching import box_ious

# Distances from the nearest patch, as multiples of the object's own side (the root of
# its box's area): the part of a picture in which a detector with a pyramid sees an
# object grows with the object. Up to the first one an object counts as patched.
EDGES = (0.25, 1.0, 2.0)

# Share of a detection's area on a patch from which it is one of the patch.
ON_PATCH = 0.5

# Instead of infinity, where an image has no patch.
_FAR = 1e6


@dataclass(frozen=True)
class PatchFigures:
    """AP at patches and further away.

    Attributes:
        mean_ap: mAP over all objects; false detections on patches are left out, here
            and in ``near``.
        near: mAP over the objects of each bin of distance, from patched to far; None
            where there are none.
        objects: how many each bin has, crowds not counted.
        on_patch: false detections on patches, with a score of at least ``SCORE_THR``.
        images: with a patch.
    """

    mean_ap: float | None
    near: tuple[float | None, ...]
    objects: tuple[int, ...]
    on_patch: int
    images: int


def patch_figures(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    patches: Mapping[Any, Any],
    num_classes: int,
) -> PatchFigures:
    """Computes AP by the distance of objects from the nearest patch.

    As COCO computes it by area: objects of other bins are ignored, and so is a
    detection without a match whose own distance is not in the bin.

    A false detection on a patch has half of its area on one, and no object of whatever
    class overlaps it by an IoU of 0.5: a detection of the patched object is none.

    Args:
        truths: all images of the dataset.
        detections: of the same images, in any order.
        patches: boxes (n, 4) of each image's patches by its id, in pixels of the
            original image.
        num_classes: K, classes of the dataset.

    Raises:
        ConfigError: if the images do not agree (see ``pair``).
    """
    pairs = pair(truths, detections, num_classes)
    boxes = [
        np.asarray(patches.get(truth.img_id, ()), float).reshape(-1, 4)
        for truth, _ in pairs
    ]
    far, seen, on_patch = [], [], 0
    for (truth, found), own in zip(pairs, boxes, strict=True):
        far.append(distances(truth.bboxes, own))
        false = _on_patch(truth, found, own)
        on_patch += int((false & (found.scores >= SCORE_THR)).sum())
        # Below every bin, so that it is ignored unless it hits an object after all.
        seen.append(np.where(false, -1.0, distances(found.bboxes, own)))
    lows = (0.0, *(np.nextafter(edge, 2 * edge) for edge in EDGES))
    ranges = [(0.0, _FAR), *zip(lows, (*EDGES, _FAR), strict=True)]
    precision = precision_by(pairs, num_classes, far, seen, ranges)
    overall, *near = (
        mean_precision(precision[:, :, :, place, 0]) for place in range(len(ranges))
    )
    known = [each[~truth.ignore] for each, (truth, _) in zip(far, pairs, strict=True)]
    places = np.searchsorted(EDGES, np.concatenate([*known, np.zeros(0)]))
    return PatchFigures(
        mean_ap=_known(overall),
        near=tuple(map(_known, near)),
        objects=tuple(np.bincount(places, minlength=len(EDGES) + 1).tolist()),
        on_patch=on_patch,
        images=sum(len(own) > 0 for own in boxes),
    )


def distances(boxes: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Returns how far boxes (N, 4) are from the nearest of patches (n, 4).

    Returns:
        (N,) gaps between their edges as multiples of the root of the box's area, 0
        where they touch.
    """
    if not len(patches):
        return np.full(len(boxes), _FAR)
    mine, others = boxes.astype(float)[:, None], patches[None]
    gaps = np.maximum(others[..., :2] - mine[..., 2:], mine[..., :2] - others[..., 2:])
    length = np.linalg.norm(gaps.clip(0), axis=-1).min(1)
    side = np.sqrt(box_areas(boxes).clip(1e-12))
    return np.minimum(length / side, _FAR)


def _on_patch(truth: GroundTruth, found: Detections, patches: np.ndarray) -> np.ndarray:
    """Returns which detections (N,) are false ones on patches."""
    # Of crowds COCO's overlap is the share of the detection's own area.
    shares = box_ious(found.bboxes, patches, np.ones(len(patches), bool))
    overlaps = box_ious(found.bboxes, truth.bboxes, truth.ignore)
    on = shares.max(1, initial=0) >= ON_PATCH
    off: np.ndarray = overlaps.max(1, initial=0) < FOREGROUND_IOU
    return on & off


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
