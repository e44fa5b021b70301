"""Puts pictures at random places of a canvas, and moves their ground truth along."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

# Mid-grey, as far as possible from both ends of the pixel range.
_CANVAS = 127.5

# What mmdet's segmentation losses skip.
_NO_CLASS = 255


@dataclass(frozen=True)
class Placement:
    """The place of a picture (h, w) on a canvas of its own size (height, width).

    Args:
        canvas: (height, width) of the image and of the canvas.
        size: (height, width) of the shrunk picture.
        corner: (top, left) of it on the canvas.
    """

    canvas: tuple[int, int]
    size: tuple[int, int]
    corner: tuple[int, int]

    @classmethod
    def draw(
        cls, image: Tensor, smallest: float, generator: torch.Generator | None = None
    ) -> Placement:
        """Draws a place for an image (C, H, W), of which only the size matters.

        The share of its height and width that the picture keeps is uniform from
        ``smallest`` to 1, and so is the place. The default generator is torch's.
        """
        height, width = image.shape[-2:]
        drawn = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        share = smallest + (1 - smallest) * drawn[0]
        size = max(round(share * height), 1), max(round(share * width), 1)
        top = int(drawn[1] * (height - size[0] + 1))
        left = int(drawn[2] * (width - size[1] + 1))
        return cls((height, width), size, (top, left))

    def place(self, image: Tensor) -> Tensor:
        """The image (C, H, W) on the canvas; differentiable."""
        picture = F.interpolate(
            image[None], size=self.size, mode='bilinear', align_corners=False
        )[0]
        return self._pad(picture, _CANVAS)

    def move(self, sample: BaseDataElement) -> BaseDataElement:
        """A copy of the sample whose ground truth lies where the picture does.

        Boxes, masks, proposals and maps of classes move; labels stay.
        """
        moved = sample.new()
        for key in ('gt_instances', 'ignored_instances', 'proposals'):
            if key in sample:
                moved.set_field(self._instances(sample.get(key)), key)
        if 'gt_sem_seg' in sample:
            segmentation = sample.gt_sem_seg.sem_seg
            resized = F.interpolate(
                segmentation[None].float(), size=self.size, mode='nearest'
            )[0]
            placed = self._pad(resized, _NO_CLASS).to(segmentation.dtype)
            moved.gt_sem_seg = sample.gt_sem_seg.new(sem_seg=placed)
        return moved

    def moved_back(self, boxes: Tensor) -> Tensor:
        """Boxes (n, 4) on the canvas, in the frame of the image."""
        factors = self.size[1] / self.canvas[1], self.size[0] / self.canvas[0]
        corner = self.corner[1], self.corner[0]
        return (boxes - boxes.new_tensor(corner * 2)) / boxes.new_tensor(factors * 2)

    def resized(self, scale: tuple[float, float], canvas: tuple[int, int]) -> Placement:
        """The same place on the canvas as it is after resizing.

        Args:
            scale: (vertical, horizontal) of the resizing.
            canvas: (height, width) after it, padding right and bottom included, which
                may make the picture seem larger than it is.
        """
        sides = zip(self.size, self.canvas, canvas, strict=True)
        height, width = (max(round(side * new / old), 1) for side, old, new in sides)
        top = min(round(self.corner[0] * scale[0]), canvas[0] - height)
        left = min(round(self.corner[1] * scale[1]), canvas[1] - width)
        return Placement(canvas, (height, width), (top, left))

    def _pad(self, picture: Tensor, value: float) -> Tensor:
        (height, width), (top, left) = self.size, self.corner
        right, bottom = self.canvas[1] - left - width, self.canvas[0] - top - height
        return F.pad(picture, (left, right, top, bottom), value=value)

    def _instances(self, instances: InstanceData) -> InstanceData:
        moved = deepcopy(instances)
        factors = self.size[1] / self.canvas[1], self.size[0] / self.canvas[0]
        corner = self.corner[1], self.corner[0]
        boxes = moved.get('bboxes', None)
        if boxes is not None and hasattr(boxes, 'rescale_'):
            boxes.rescale_(factors)
            boxes.translate_(corner)
        elif boxes is not None:
            scale, offset = boxes.new_tensor(factors * 2), boxes.new_tensor(corner * 2)
            moved.bboxes = boxes * scale + offset
        if 'masks' in moved:
            moved.masks = self._masks(moved.masks)
        return moved

    def _masks(self, masks: Any) -> Any:
        # Not at the top: mmdet may be missing where there are classifiers only.
        from mmdet.structures.mask import BitmapMasks

        placed = np.zeros((len(masks), *self.canvas), np.uint8)
        (top, left), (height, width) = self.corner, self.size
        if len(masks):
            resized = masks.resize(self.size).to_ndarray()
            placed[:, top : top + height, left : left + width] = resized
        return BitmapMasks(placed, *self.canvas)
