"""Reads panoptic segmentations of mmdet's models, and paints them into pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from mmengine.structures import BaseDataElement

from ..frame import TO_INPUT
from ..geometry import Affine

# The id of a segment is its class plus so many times its number.
_OFFSET = 1000


def segments_of(
    output: BaseDataElement, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a prediction's segments.

    Args:
        output: with ``pred_panoptic_seg``.
        num_classes: K, whose number is void; 0 if it is not known.

    Returns:
        (H, W) ids, those of the S segments, and (S,) their classes.
    """
    found = output.pred_panoptic_seg
    ids = found.sem_seg[0].detach().cpu().numpy().astype(np.int64)
    known = np.unique(ids)
    labels = known % _OFFSET
    # CocoPanopticMetric, which may have read the prediction before, puts 0 for void.
    void = (known == 0) | (labels >= (num_classes or _OFFSET))
    void |= labels == found.get('ignore_index', num_classes or _OFFSET)
    return ids, known[~void], labels[~void]


def paint_segments(
    image: np.ndarray,
    output: BaseDataElement,
    truth: BaseDataElement,
    scale: int,
    meta: Mapping[str, Any],
) -> tuple[np.ndarray, list[tuple[list[float], str, float]]]:
    """Tints the segments of a prediction in the colours of their classes.

    Args:
        image: RGB, uint8 (height, width, 3), the network's input enlarged.
        output: the prediction, in the original picture's frame.
        truth: the sample that knows where the picture lies in the input.
        scale: by how much the input is enlarged.
        meta: of the dataset, with ``classes`` and ``palette`` if there are any.

    Returns:
        The image, and of each segment (x, y) in it, its class and its area.
    """
    classes, palette = meta.get('classes'), meta.get('palette')
    ids, known, labels = segments_of(output, len(classes or ()))
    factors = output.get('scale_factor', (1.0, 1.0))
    to_input = truth.get(TO_INPUT, None) or Affine.scaling(*factors)
    matrix = scale * to_input.matrix
    # OpenCV's pixels have their centres at whole numbers.
    shift = scale * to_input.shift + matrix @ [0.5, 0.5] - 0.5
    mapped = cv2.warpAffine(
        *(ids.astype(np.float32), np.column_stack([matrix, shift])),
        image.shape[1::-1],
        flags=cv2.INTER_NEAREST,
    )
    before, image, found = image.astype(int), image.copy(), []
    for number, label in zip(known, labels.tolist(), strict=True):
        mask = mapped == number
        if not mask.any():
            continue
        colour = np.random.default_rng(label).integers(0, 256, 3)
        if isinstance(palette, list) and label < len(palette):
            colour = np.array(palette[label])
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        image[mask] = colour
        # The picture is seen through all but the segment's edge.
        image[inner] = (before[inner] + colour) // 2
        rows, columns = np.nonzero(mask)
        middle = len(rows) // 2
        corner = [float(columns[middle]), float(rows[middle])]
        name = str(classes[label] if classes else label)
        found.append((corner, name, float(len(rows))))
    return image, found
