"""Where patches lie: on objects, beside them, or at a fixed place of the picture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigError

OBJECT, BESIDE = 'object', 'beside'


@dataclass(frozen=True)
class Place:
    """A rectangle of whole pixels. It may stick out of an image, which cuts it off.

    Args:
        top, left: its first row and column.
        height, width: how many rows and columns it has.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Its edges, (left, top, right, bottom)."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """Its pixels as an index of an image (C, H, W)."""
        left, top, right, bottom = (max(edge, 0) for edge in self.box)
        return slice(None), slice(top, bottom), slice(left, right)

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of its middle."""
        return self.left + self.width / 2, self.top + self.height / 2

    def cut(self, picture: Place) -> Place:
        """Returns what lies on a picture; nothing has no rows or no columns."""
        edges = tuple(zip(self.box, picture.box, strict=True))
        (left, top), (right, bottom) = map(max, edges[:2]), map(min, edges[2:])
        return Place(top, left, max(bottom - top, 0), max(right - left, 0))

    def shared(self, box: Sequence[float]) -> float:
        """Returns how many pixels it shares with a box (x1, y1, x2, y2)."""
        left, top, right, bottom = self.box
        width = min(right, box[2]) - max(left, box[0])
        height = min(bottom, box[3]) - max(top, box[1])
        return max(width, 0) * max(height, 0)

    def inside(self, picture: Place) -> Place:
        """Returns it moved into a picture, and centred on it where it is larger."""

        def moved(start: int, size: int, first: int, room: int) -> int:
            if size > room:
                return first + (room - size) // 2
            return min(max(start, first), first + room - size)

        top = moved(self.top, self.height, picture.top, picture.height)
        left = moved(self.left, self.width, picture.left, picture.width)
        return Place(top, left, self.height, self.width)


@dataclass(frozen=True)
class PatchSize:
    """The size of a patch: a share of an area, or pixels.

    Args:
        share: of the area of the object's box inside the picture, or of the picture's
            for a patch at a fixed place; the patch is a square. None for pixels.
        pixels: (height, width); None for a share.
    """

    share: float | None = None
    pixels: tuple[int, int] | None = None

    @classmethod
    def read(cls, value: Any) -> PatchSize:
        """Reads a size.

        Args:
            value: a number below 1 is a share of the area; a whole number is the side
                of a square in pixels, and text like ``'32x48'`` (or a pair) height and
                width in pixels.

        Raises:
            ConfigError: for anything else.
        """
        pair = value
        if isinstance(value, str) and re.fullmatch(r'\s*\d+\s*x\s*\d+\s*', value):
            pair = value.split('x')
        try:
            if isinstance(pair, (list, tuple)):
                height, width = pair
                if min(int(height), int(width)) >= 1:
                    return cls(pixels=(int(height), int(width)))
            elif not isinstance(value, bool):
                number = float(value)
                if 0 < number < 1:
                    return cls(share=number)
                if number >= 1 and number == int(number):
                    return cls(pixels=(int(number), int(number)))
        except (TypeError, ValueError, OverflowError):
            pass
        raise ConfigError(
            f'{value!r} is no size of a patch: give the share of the area that it '
            'covers, above 0 and below 1, or its side in whole pixels, or its height '
            "and width like '32x48'."
        )

    def of(self, area: float) -> tuple[int, int]:
        """Returns (height, width) in pixels, where the share is that of an area."""
        if self.share is None:
            assert self.pixels is not None
            return self.pixels
        side = max(round(math.sqrt(self.share * area)), 1)
        return side, side

    def __str__(self) -> str:
        if self.share is None:
            assert self.pixels is not None
            return 'x'.join(map(str, self.pixels))
        return f'{self.share:g}'


def picture_of(image: Tensor, region: Tensor | None = None) -> Place:
    """Returns the rectangle of an image (C, H, W) that its picture fills.

    Args:
        image: the image, of which only the size matters.
        region: the pixels that depend on the picture, bool (1, H, W); None for all.
    """
    if region is None:
        return Place(0, 0, *image.shape[-2:])
    found = [region.any(axis).flatten().nonzero().flatten() for axis in (2, 1)]
    if not len(found[0]):
        return Place(0, 0, 0, 0)
    (top, bottom), (left, right) = ((int(f[0]), int(f[-1]) + 1) for f in found)
    return Place(top, left, bottom - top, right - left)


def places(
    boxes: Tensor,
    picture: Place,
    size: PatchSize,
    where: str | Sequence[int] = OBJECT,
) -> list[Place]:
    """Returns where the patches of an image lie, in its frame.

    Args:
        boxes: of the objects, (n, 4) as x1, y1, x2, y2.
        picture: see :func:`picture_of`.
        size: of each patch.
        where: ``'object'`` centres a patch on the box of each object; ``'beside'`` puts
            one at the right, the left, under or above each box, middle to middle, where
            it hides least of objects (the first of equal ones); a pair (left, top) is
            the one place of the image's only patch, counted from the picture's corner.

    Returns:
        One place for each object of which something lies inside the picture, moved
        inside of it where it would stick out; or the fixed one, cut off by the picture.
    """
    if not isinstance(where, str):
        left, top = where
        height, width = size.of(picture.height * picture.width)
        return [Place(picture.top + top, picture.left + left, height, width)]
    first, last = (picture.left, picture.top), picture.box[2:]
    limits = boxes.new_tensor([*first, *first]), boxes.new_tensor([*last, *last])
    inside = boxes.detach().clamp(*limits).tolist()
    seen = [box for box in inside if box[2] > box[0] and box[3] > box[1]]
    find = _on if where == OBJECT else _beside
    found = []
    for box in seen:
        pixels = size.of((box[2] - box[0]) * (box[3] - box[1]))
        found.append(find(box, pixels, picture, seen))
    return found


def _at(corner: tuple[float, float], size: tuple[int, int]) -> Place:
    """The place whose first corner is nearest to (x, y)."""
    left, top = (math.floor(place + 0.5) for place in corner)
    return Place(top, left, *size)


def _on(
    box: Sequence[float], size: tuple[int, int], picture: Place, _: Sequence[Any]
) -> Place:
    (x1, y1, x2, y2), (height, width) = box, size
    middle = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
    return _at(middle, size).inside(picture)


def _beside(
    box: Sequence[float],
    size: tuple[int, int],
    picture: Place,
    boxes: Sequence[Sequence[float]],
) -> Place:
    (x1, y1, x2, y2), (height, width) = box, size
    x, y = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
    # Whole pixels that leave the box alone.
    right, below = math.ceil(x2), math.ceil(y2)
    left, above = math.floor(x1) - width, math.floor(y1) - height
    corners = ((right, y), (left, y), (x, below), (x, above))
    tried = [_at(corner, size).inside(picture) for corner in corners]
    return min(tried, key=lambda place: sum(map(place.shared, boxes)))
