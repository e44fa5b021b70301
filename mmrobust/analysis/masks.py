"""Masks of an image as COCO's run lengths, and how much they overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError


@dataclass(frozen=True, eq=False)
class Masks:
    """N masks of one image; some hundred bytes each, where pixels take megabytes."""

    counts: np.ndarray  # (N,) object, the bytes of each mask's run lengths
    size: tuple[int, int]  # height and width of the image in pixels

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, keep: np.ndarray) -> Masks:
        return Masks(self.counts[keep], self.size)

    @classmethod
    def from_pixels(cls, pixels: np.ndarray) -> Masks:
        """Packs masks (N, H, W), whatever is not 0 being part of the object."""
        packed = np.asfortranarray((pixels != 0).transpose(1, 2, 0), dtype=np.uint8)
        height, width = pixels.shape[1:]
        return cls.from_annotations(coco_mask.encode(packed), height, width)

    @classmethod
    def from_annotations(
        cls, segmentations: Sequence[Any], height: int, width: int
    ) -> Masks:
        """Reads what COCO's files and mmdet's datasets have as masks.

        Args:
            segmentations: of each object its polygons, lists of (x, y, x, y, ...), or
                its run lengths, compressed or not.
            height: of the image in pixels.
            width: the same.

        Raises:
            ConfigError: for anything else, and for run lengths of another size.
        """
        counts = np.empty(len(segmentations), dtype=object)
        for place, each in enumerate(segmentations):
            counts[place] = _counts(each, height, width)
        return cls(counts, (height, width))

    def rles(self) -> list[dict[str, Any]]:
        """Returns pycocotools' form of the masks."""
        return [{'size': list(self.size), 'counts': each} for each in self.counts]

    def areas(self) -> np.ndarray:
        """(N,) areas in square pixels."""
        return np.asarray(coco_mask.area(self.rles()), dtype=np.float64).reshape(-1)

    def boxes(self) -> np.ndarray:
        """(N, 4) boxes (x1, y1, x2, y2) around the masks; 0 for an empty one."""
        boxes = np.asarray(coco_mask.toBbox(self.rles()), np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def ious(self, objects: Masks, crowd: np.ndarray) -> np.ndarray:
        """(N, M) overlaps; with a crowd, the share of the mask inside of it.

        Raises:
            ConfigError: if both are not of one size.
        """
        if not len(self) or not len(objects):
            return np.zeros((len(self), len(objects)))
        if self.size != objects.size:
            ours, theirs = ('{} x {}'.format(*each.size) for each in (self, objects))
            raise ConfigError(
                f'predicted masks are of {ours} pixels and those of the ground truth '
                f'of {theirs} (height x width): they have to be of one frame.'
            )
        flags = crowd.astype(np.uint8).tolist()
        return np.asarray(coco_mask.iou(self.rles(), objects.rles(), flags))


def _counts(segmentation: Any, height: int, width: int) -> bytes:
    try:
        if not isinstance(segmentation, Mapping):
            parts = coco_mask.frPyObjects(segmentation, height, width)
            return coco_mask.merge(parts)['counts']
        size, counts = tuple(map(int, segmentation['size'])), segmentation['counts']
        if isinstance(counts, list):
            segmentation = {'size': list(size), 'counts': counts}
            counts = coco_mask.frPyObjects(segmentation, height, width)['counts']
    except Exception as error:  # pycocotools raises nothing more special
        raise ConfigError(
            f'{str(segmentation)[:60]} is no mask (lists of polygons, or a dict with '
            f'size and counts): {error}'
        ) from error
    if size != (height, width):
        raise ConfigError(
            f'a mask is of {size[0]} x {size[1]} pixels, and its image of {height} x '
            f'{width} (height x width).'
        )
    return counts.encode() if isinstance(counts, str) else counts
