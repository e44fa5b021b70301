"""Draws digits on photographs and writes what was drawn."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import ConfigError

SPLITS = ('train', 'val')
CLASSES = tuple('0123456789')

# Digits (1797, 8, 8), float, 0-1; their classes (1797,), 0-9; photographs (H, W, 3),
# RGB, uint8, by file name.
Sources = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]

# Left part of each photograph and first digits of each class: training; rest: val.
_TRAIN_WIDTH = 0.7
_TRAIN_DIGITS = 0.8
_MAX_DIGITS = 4
# Side of the enlarged 8 x 8 digit, as parts of the image's side (24-64 px of 128).
_SIDES = (3 / 16, 1 / 2)
# Photographs are dimmed and digits are bright, so that a digit is lighter than most
# of what is behind it: detectors learn the classes in far fewer updates.
_PHOTO_BRIGHTNESS = 0.5
_DARKEST_COLOR = 96
# Largest part of the smaller of two boxes that the other may cover.
_MAX_OVERLAP = 0.1


def file_name(index: int) -> str:
    """Name of an image file."""
    return f'{index:04d}.png'


def load_sources() -> Sources:
    """Loads what the images are made of."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ConfigError(
            'the digits dataset is made from images in scikit-learn, which is not '
            'installed: pip install mmrobust[demo]'
        ) from error
    digits, photos = load_digits(), load_sample_images()
    names = [os.path.basename(name) for name in photos.filenames]
    by_name = dict(sorted(zip(names, photos.images, strict=True)))
    return digits.images / 16, digits.target, by_name


def write_split(
    root: Path, split: str, count: int, size: int, seed: int, sources: Sources
) -> None:
    """Writes the images of one split and their annotation file."""
    digits, classes, photos = sources
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    queue = _digit_ids(classes, split, rng)
    digit_id = next(queue)
    images: list[dict] = []
    annotations: list[dict] = []
    (root / split).mkdir()
    for image_id in range(count):
        photo = str(rng.choice(list(photos)))
        crop = _random_crop(photos[photo].shape, split, size, rng)
        image = photos[photo][crop[1] : crop[1] + size, crop[0] : crop[0] + size]
        image = _PHOTO_BRIGHTNESS * image
        boxes: list[list[int]] = []
        for _ in range(rng.integers(1, _MAX_DIGITS + 1)):
            pasted = _paste(image, digits[digit_id], boxes, rng)
            if pasted is None:
                continue  # No room: the same digit is tried in the next place.
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(classes[digit_id]),
                    'iscrowd': 0,
                    'area': pasted['bbox'][2] * pasted['bbox'][3],
                    'digit_id': digit_id,
                    **pasted,
                }
            )
            boxes.append(pasted['bbox'])
            digit_id = next(queue)
        name = file_name(image_id)
        encoded = cv2.imencode('.png', np.rint(image).astype(np.uint8)[..., ::-1])[1]
        (root / split / name).write_bytes(encoded.tobytes())
        entry = {'id': image_id, 'file_name': name, 'height': size, 'width': size}
        images.append({**entry, 'photo': photo, 'crop': crop})
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (root / 'annotations').mkdir(exist_ok=True)
    file = root / 'annotations' / f'instances_{split}.json'
    file.write_text(json.dumps(content))


def _digit_ids(
    classes: np.ndarray, split: str, rng: np.random.Generator
) -> Iterator[int]:
    """Yields digits of a split without end, the ten classes equally often."""
    pools = defaultdict(list)
    for digit_id, label in enumerate(classes):
        pools[int(label)].append(digit_id)
    for label, pool in pools.items():
        cut = int(_TRAIN_DIGITS * len(pool))
        pools[label] = pool[:cut] if split == 'train' else pool[cut:]
    while True:
        for label in rng.permutation(len(CLASSES)):
            yield int(rng.choice(pools[int(label)]))


def _random_crop(
    shape: tuple[int, ...], split: str, size: int, rng: np.random.Generator
) -> list[int]:
    """Draws a crop ``[x, y, w, h]`` from the split's part of a photograph."""
    height, width = shape[:2]
    border = int(_TRAIN_WIDTH * width)
    left, right = (0, border) if split == 'train' else (border, width)
    if size > min(height, right - left):
        raise ConfigError(
            f'images of {size} pixels are larger than the photographs allow: use a '
            f'size of at most {min(height, right - left)}.'
        )
    x = int(rng.integers(left, right - size + 1))
    y = int(rng.integers(0, height - size + 1))
    return [x, y, size, size]


def _paste(
    image: np.ndarray,
    digit: np.ndarray,
    boxes: list[list[int]],
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """Pastes a digit in random size, place and colour, in place.

    Args:
        image: (S, S, 3), float, RGB, 0-255; changed.
        digit: (8, 8), 0-1.
        boxes: boxes ``[x, y, w, h]`` already in the image.
        rng: source of randomness.

    Returns:
        ``bbox``, ``side`` and ``color`` of the digit, None if it found no room.
    """
    size = image.shape[0]
    for _ in range(20):
        side = int(rng.integers(round(_SIDES[0] * size), round(_SIDES[1] * size) + 1))
        opacity = _enlarge(digit, side)
        height, width = opacity.shape
        x = int(rng.integers(0, size - width + 1))
        y = int(rng.integers(0, size - height + 1))
        rows, columns = (np.flatnonzero((opacity >= 0.5).any(axis)) for axis in (1, 0))
        box = [
            x + int(columns[0]),
            y + int(rows[0]),
            int(columns[-1] - columns[0]) + 1,
            int(rows[-1] - rows[0]) + 1,
        ]
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in boxes):
            break
    else:
        return None
    patch = image[y : y + height, x : x + width]
    # The most visible of a few colours, so that no digit melts into its background.
    colors = rng.integers(_DARKEST_COLOR, 256, (4, 3))
    distances = np.abs(colors - patch.mean((0, 1))).sum(1)
    color = colors[distances.argmax()]
    patch += opacity[..., None] * (color - patch)
    return {'bbox': box, 'side': side, 'color': color.tolist()}


def _enlarge(digit: np.ndarray, side: int) -> np.ndarray:
    """Enlarges a digit (8, 8) to about ``side`` pixels.

    Returns:
        Its opacity (h, w), 0-1, without the empty rows and columns around it.
    """
    # A margin of one cell, as strokes at the border would end in a straight cut.
    padded = np.pad(digit, 1)
    scaled = round(side * padded.shape[0] / digit.shape[0])
    smooth = cv2.resize(padded, (scaled, scaled), interpolation=cv2.INTER_CUBIC)
    opacity = np.clip(2 * smooth - 0.5, 0, 1)
    rows, columns = (np.flatnonzero(opacity.any(axis)) for axis in (1, 0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(one: list[int], other: list[int]) -> float:
    """Returns the part of the smaller of two boxes that the other one covers."""
    inner = [
        min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i])
        for i in (0, 1)
    ]
    smaller = min(one[2] * one[3], other[2] * other[3])
    return max(inner[0], 0) * max(inner[1], 0) / smaller
