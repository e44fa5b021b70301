"""The two tasks of the study, made from one set of small pictures.

Pictures come in folders, ``{train,test}/<class>/*.{jpg,png}``, as CIFAR-10 usually
does; without CIFAR-10 such folders are made from scikit-learn's handwritten digits.
A part of the pictures becomes the objects of a detection set, one to five of them on a
textured canvas; the others are the classification set of the upstream task. No picture
(for the digits: no handwritten digit) is in two of the four sets::

    detection/{train,test}/*.png   detection/{train,test}.json    COCO's layout
    upstream_{train,test}.txt      lists of pictures and labels, for CustomDataset;
                                   with _first and _last: of half the classes
    data.json                      what was made, from what
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmrobust.errors import ConfigError
from mmrobust.utils.files import write_atomically

SPLITS = ('train', 'test')
CIFAR10 = (
    'airplane', 'automobile', 'bird', 'cat', 'deer',
    'dog', 'frog', 'horse', 'ship', 'truck',
)  # fmt: skip
DIGITS = tuple('0123456789')
# Share of the pictures that become objects.
_OBJECTS = {'train': 0.25, 'test': 0.5}
_SIDES = (24, 64)  # least and greatest side of an object, pixels
_MOST_OBJECTS = 5
_GAP = 2  # pixels between objects


@dataclass(frozen=True)
class Amounts:
    """How many images the detection set has, and what they were drawn with.

    Attributes:
        num_train: training images.
        num_test: test images.
        canvas: least and greatest side of an image, pixels.
        seed: of everything random.
    """

    num_train: int
    num_test: int
    canvas: tuple[int, int] = (128, 160)
    seed: int = 0


def make_data(root: Path, cifar10: Path | None, amounts: Amounts) -> dict[str, Any]:
    """Makes both tasks in a folder, unless they are there.

    Args:
        root: folder to make; complete or not there at all.
        cifar10: folder of CIFAR-10; None for the digits.
        amounts: sizes of the detection set.

    Returns:
        Content of ``data.json``: ``source``, ``classes``, ``pictures`` (the folder of
        the pictures), ``amounts``, ``counts`` and ``sha256`` (of the annotations).

    Raises:
        ConfigError: for a folder that is not CIFAR-10, or one made otherwise.
    """
    made = root / 'data.json'
    source = 'digits' if cifar10 is None else 'cifar10'
    if made.is_file():
        found = json.loads(made.read_text())
        if found['source'] != source or found['amounts'] != as_json(amounts):
            raise ConfigError(
                f'{root} holds data of {found["source"]} with {found["amounts"]}: '
                'give another --work-dir.'
            )
        return dict(found)
    if cifar10 is not None:
        check_cifar10(cifar10)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    pictures = (root / 'pictures' if cifar10 is None else cifar10).resolve()
    if cifar10 is None:
        draw_digits(pictures)
    classes = DIGITS if cifar10 is None else CIFAR10
    counts: dict[str, int] = {}
    digest = hashlib.sha256()
    for split in SPLITS:
        objects, upstream = share_out(pictures / split, classes, split, amounts.seed)
        write_lists(root, split, upstream, len(classes))
        count = amounts.num_train if split == 'train' else amounts.num_test
        rng = np.random.default_rng([amounts.seed, SPLITS.index(split), 1])
        queue = endless([(pictures / split / path, c) for path, c in objects], rng)
        content = write_detection(
            root / 'detection', split, count, queue, classes, amounts.canvas, rng
        )
        counts[f'upstream_{split}'] = len(upstream)
        counts[f'objects_{split}'] = len(content['annotations'])
        digest.update((root / 'detection' / f'{split}.json').read_bytes())
    settings = {
        'source': source,
        'classes': list(classes),
        'pictures': str(pictures),
        'amounts': as_json(amounts),
        'counts': counts,
        'sha256': digest.hexdigest(),
    }
    write_atomically(made, json.dumps(settings, indent=1) + '\n')
    return settings


def as_json(amounts: Amounts) -> dict[str, Any]:
    """The amounts as they come back from a file."""
    return dict(json.loads(json.dumps(asdict(amounts))))


def check_cifar10(folder: Path) -> None:
    """Refuses what is not CIFAR-10 in folders.

    Raises:
        ConfigError: naming what is missing.
    """
    for split in SPLITS:
        for name in CIFAR10:
            if not any((folder / split / name).glob('*.*')):
                raise ConfigError(
                    f'{str(folder / split / name)!r} has no pictures: --cifar10 must '
                    'be a folder with {train,test}/<class>/*.png or .jpg.'
                )


def share_out(
    folder: Path, classes: tuple[str, ...], split: str, seed: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Divides the pictures of a split into those of the objects and the others.

    Returns:
        Two lists of (path relative to the folder, label). Pictures whose names agree
        up to an underscore show the same thing and stay together.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), 0])
    objects: list[tuple[str, int]] = []
    others: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        paths = sorted(p for p in (folder / name).iterdir() if p.is_file())
        things = sorted({path.stem.split('_')[0] for path in paths})
        chosen = round(_OBJECTS[split] * len(things))
        taken = {things[i] for i in rng.permutation(len(things))[:chosen]}
        for path in paths:
            part = objects if path.stem.split('_')[0] in taken else others
            part.append((f'{name}/{path.name}', label))
    return objects, others


def write_lists(
    root: Path, split: str, pictures: list[tuple[str, int]], num_classes: int
) -> None:
    """Writes the lists of the upstream task in random order: all, and half the classes.

    The classes of the last half are numbered from 0, too.
    """
    order = np.random.default_rng(SPLITS.index(split)).permutation(len(pictures))
    half = num_classes // 2
    ranges = {'': (0, num_classes), '_first': (0, half), '_last': (half, num_classes)}
    for suffix, (low, high) in ranges.items():
        chosen = [pictures[i] for i in order if low <= pictures[i][1] < high]
        text = ''.join(f'{path} {label - low}\n' for path, label in chosen)
        (root / f'upstream_{split}{suffix}.txt').write_text(text)


def endless(items: list[Any], rng: np.random.Generator) -> Iterator[Any]:
    """All items in random order, again and again."""
    while True:
        for index in rng.permutation(len(items)):
            yield items[index]


def write_detection(
    folder: Path,
    split: str,
    count: int,
    queue: Iterator[tuple[Path, int]],
    classes: tuple[str, ...],
    canvas: tuple[int, int],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Writes a split of the detection set; returns its annotations."""
    (folder / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(count):
        height, width = (int(n) for n in rng.integers(canvas[0], canvas[1] + 1, 2))
        image = texture(height, width, rng)
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(rng.integers(1, _MOST_OBJECTS + 1)):
            side = int(rng.integers(_SIDES[0], _SIDES[1] + 1))
            place = free_place(height, width, side, boxes, rng)
            if place is None:
                continue
            path, label = next(queue)
            picture = read(path)
            x, y = place
            outline = paste(image, picture, x, y, side, bool(rng.integers(2)))
            boxes.append((x, y, side, side))
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': label,
                    'bbox': [x, y, side, side],
                    'area': float(cv2.contourArea(outline)),
                    'segmentation': [outline.reshape(-1).tolist()],
                    'iscrowd': 0,
                    'picture': '/'.join(path.parts[-3:]),
                }
            )
        name = f'{image_id:05d}.png'
        encoded = cv2.imencode('.png', image)[1]
        (folder / split / name).write_bytes(encoded.tobytes())
        images.append(
            {'id': image_id, 'file_name': name, 'height': height, 'width': width}
        )
    content = {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in enumerate(classes)],
    }
    (folder / f'{split}.json').write_text(json.dumps(content))
    return content


def read(path: Path) -> np.ndarray:
    """Reads a picture (h, w, 3), BGR."""
    picture = cv2.imread(str(path))
    if picture is None:
        raise ConfigError(f'{str(path)!r} is no picture: remove it, or copy it again.')
    return picture


def texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a canvas (h, w, 3), uint8: noise of several scales between two colours."""
    noise = np.zeros((height, width), np.float32)
    for cells in (2, 5, 11, 23):
        grid = rng.random((cells, cells), np.float32)
        layer = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        noise += float(rng.random()) * layer
    noise = (noise - noise.min()) / max(float(np.ptp(noise)), 1e-6)
    first, second = rng.integers(0, 256, (2, 3)).astype(np.float32)
    mixed = first + noise[..., None] * (second - first)
    grain = rng.normal(0, 6, mixed.shape)
    return np.clip(np.rint(mixed + grain), 0, 255).astype(np.uint8)


def free_place(
    height: int,
    width: int,
    side: int,
    boxes: list[tuple[int, int, int, int]],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Looks for the corner of a square that meets no other; None if none is found."""
    for _ in range(30):
        x = int(rng.integers(0, width - side + 1))
        y = int(rng.integers(0, height - side + 1))
        if all(
            x + side + _GAP <= left
            or left + w + _GAP <= x
            or y + side + _GAP <= top
            or top + h + _GAP <= y
            for left, top, w, h in boxes
        ):
            return x, y
    return None


def paste(
    canvas: np.ndarray, picture: np.ndarray, x: int, y: int, side: int, oval: bool
) -> np.ndarray:
    """Pastes a picture, in place: whole, or what an oval shows of it.

    Returns:
        Outline (n, 2), float32, pixels of the canvas.
    """
    patch = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
    if not oval:
        canvas[y : y + side, x : x + side] = patch
        corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]
        return np.array(corners, np.float32)
    angle = np.arange(32) * (2 * np.pi / 32)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    outline = (np.array([x, y]) + side / 2 * (1 + circle)).astype(np.float32)
    centres = np.arange(side) + 0.5 - side / 2
    inside = centres[:, None] ** 2 + centres[None] ** 2 <= (side / 2) ** 2
    canvas[y : y + side, x : x + side][inside] = patch[inside]
    return outline


def draw_digits(folder: Path) -> None:
    """Writes scikit-learn's digits as pictures of 32 x 32 pixels in two colours.

    Every fifth digit is in ``test``. The same digit in other colours has the same name
    up to the underscore.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            'the digits come from scikit-learn, which is not installed: pip install '
            'mmrobust[demo], or give --cifar10.'
        ) from error
    digits = load_digits()
    rng = np.random.default_rng(0)
    for index, (strokes, label) in enumerate(
        zip(digits.images, digits.target, strict=True)
    ):
        split = 'test' if index % 5 == 0 else 'train'
        target = folder / split / DIGITS[label]
        target.mkdir(parents=True, exist_ok=True)
        opacity = cv2.resize(
            np.float32(strokes / 16), (28, 28), interpolation=cv2.INTER_CUBIC
        )
        opacity = np.pad(np.clip(opacity, 0, 1), 2)[..., None]
        for copy in range(4):
            # Light on dark, or ten classes take far more updates than there are.
            paper, ink = rng.integers(0, 112, 3), rng.integers(144, 256, 3)
            picture = np.rint(paper + opacity * (ink - paper)).astype(np.uint8)
            encoded = cv2.imencode('.png', picture)[1]
            (target / f'{index:04d}_{copy}.png').write_bytes(encoded.tobytes())
