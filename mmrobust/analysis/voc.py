"""Matches detections with objects as mmdet's VOCMetric does.

Other than COCO's matching: a detection may only take the object that it overlaps most,
whether that is free or not, boxes end with their last pixel, and all detections count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from .matching import MatchTable

# Of one image, as VOCMetric keeps it: its annotations (``bboxes``, ``labels`` and the
# same with ``_ignore``), and of each class the detections (n, 5), boxes and scores.
VocImage: TypeAlias = tuple[Mapping[str, np.ndarray], Sequence[np.ndarray]]

# VOCMetric's names to those of :class:`.MatchTable`.
_POINTS = {'11points': 11, 'area': 0}


def match_as_voc(
    images: Sequence[VocImage],
    img_ids: Sequence[Any],
    num_classes: int,
    ious: Sequence[float],
    mode: str,
) -> MatchTable:
    """Matches the detections of a dataset.

    Args:
        images: all images of the dataset.
        img_ids: theirs, in the same order.
        num_classes: K, classes of the dataset.
        ious: (T,) thresholds.
        mode: VOCMetric's ``eval_mode``.

    Returns:
        A table whose mAP is the one that VOCMetric gives, up to rounding and to the
        order of detections of equal score.
    """
    # What decides is mmdet's, so that no rule of it can differ here.
    from mmdet.evaluation.functional.mean_ap import tpfp_default

    nothing = np.zeros((len(ious), 0), bool)
    place, label, score = [], [], []
    hits, misses = [nothing], [nothing]
    for index, (truth, detections) in enumerate(images):
        for kind, found in enumerate(detections):
            if not len(found):
                continue
            found = found[np.argsort(-found[:, 4], kind='stable')]
            own = truth['bboxes'][truth['labels'] == kind]
            ignored = truth['bboxes_ignore'][truth['labels_ignore'] == kind]
            flags = [
                tpfp_default(found, own, ignored, iou, use_legacy_coordinate=True)
                for iou in ious
            ]
            hits.append(np.concatenate([hit for hit, _ in flags]) > 0)
            misses.append(np.concatenate([miss for _, miss in flags]) > 0)
            place.append(np.full(len(found), index))
            label.append(np.full(len(found), kind))
            score.append(found[:, 4].astype(np.float64))
    hit = np.concatenate(hits, axis=1)
    labels = [np.asarray(truth['labels']) for truth, _ in images]
    return MatchTable(
        img_ids=tuple(img_ids),
        num_classes=num_classes,
        image=_joined(place),
        label=_joined(label),
        score=_joined(score),
        hit=hit,
        ignored=~(hit | np.concatenate(misses, axis=1)),
        gt_image=np.repeat(np.arange(len(images)), [len(each) for each in labels]),
        gt_label=_joined(labels),
        points=_POINTS[mode],
    )


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, int), *parts])
