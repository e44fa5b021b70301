"""Handwritten digits on photographs: a small detection dataset without a download.

scikit-learn brings 1797 real handwritten digits (8 x 8) and two real photographs.
Digits, enlarged smoothly, in random size and bright colour, are pasted on dimmed crops
of the photographs. The images are written once, as PNG files in COCO's layout::

    annotations/instances_{train,val}.json  train/0000.png ...  val/0000.png ...
    digits.json    the settings; tells such a folder from any other

Training and validation share neither digits nor photograph pixels. The same settings
give the same bytes on every run with the same scikit-learn, Pillow and OpenCV.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset

from ..errors import ConfigError
from ..registry import DATASETS
from ..utils.files import cache_folder
from .drawing import CLASSES, SPLITS, file_name, load_sources, write_split

# Raise it with every change that changes the data: caches are kept per version.
VERSION = 2
PALETTE = [
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
    (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (0, 128, 128),
]  # fmt: skip

_MARKER = 'digits.json'


def digits_root() -> str:
    """Returns the folder in which the dataset is cached.

    It lies in ``$MMROBUST_CACHE``, else ``$XDG_CACHE_HOME/mmrobust``, else
    ``~/.cache/mmrobust``, under a name that carries the generator's version.
    """
    return os.path.join(cache_folder(), f'digits-v{VERSION}')


def make_digits(
    root: str | Path,
    *,
    num_train: int = 800,
    num_val: int = 200,
    size: int = 128,
    seed: int = 0,
) -> None:
    """Makes the dataset, unless ``root`` holds it already.

    The folder appears complete or not at all, also when several processes make it at
    once. Files missing from an existing one are put back.

    Each image has 1 to 4 digits. A digit's box ``[x, y, w, h]`` bounds the pixels in
    which the digit's opacity is at least one half, in whole pixels; an annotation
    also has ``digit_id`` (index in scikit-learn's data), ``side`` (of the enlarged
    digit, pixels) and ``color`` (RGB, 0-255), an image ``photo`` (file name) and
    ``crop`` (``[x, y, w, h]`` in the photograph). Later digits lie on top.

    Args:
        root: folder to make; its parents are made, too.
        num_train: number of training images.
        num_val: number of validation images.
        size: height and width of the images, in pixels, at most 192.
        seed: seed of everything random.

    Raises:
        ConfigError: if scikit-learn is missing, the folder cannot be written, or it
            holds something else.
    """
    root = Path(root)
    counts = {'train': num_train, 'val': num_val}
    settings = {**counts, 'size': size, 'seed': seed, 'version': VERSION}
    try:
        found = _read_settings(root)
        if found not in (None, settings):
            raise ConfigError(
                f'{root} holds digits made with other settings ({found}, not '
                f'{settings}): delete the folder or choose another one.'
            )
        if _is_complete(root):
            return
        # A sibling, because a folder can only be renamed within its file system.
        building = root.parent / f'.{root.name}-{uuid.uuid4().hex}'
        try:
            building.mkdir(parents=True)
            sources = load_sources()
            for split in SPLITS:
                write_split(building, split, counts[split], size, seed, sources)
            (building / _MARKER).write_text(json.dumps(settings))
            _publish(building, root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f'the digits cannot be written to {root} ({error.strerror or error}): set '
            'MMROBUST_CACHE or data_root to a folder that can be written.'
        ) from error


def ensure_digits(root: str | Path) -> None:
    """Makes the dataset with the default settings, unless there is one of any."""
    if not _is_complete(Path(root)):
        make_digits(root)


def _read_settings(root: Path) -> dict | None:
    """Returns the settings a folder was made with, None if there is nothing in it."""
    # Not Path.exists, which raises where a parent folder cannot be read.
    if not os.path.exists(root) or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        settings = json.loads((root / _MARKER).read_text())
        if not isinstance(settings, dict) or not set(SPLITS) <= settings.keys():
            raise ValueError(f'{_MARKER} lacks the number of images')
        return settings
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise ConfigError(
            f'{root} was not made by mmrobust (it has no readable {_MARKER}), so '
            'nothing is written there: choose another folder for the digits.'
        ) from error


def _is_complete(root: Path) -> bool:
    """Tells whether no file of the dataset is missing."""
    settings = _read_settings(root)
    return settings is not None and all(
        (root / 'annotations' / f'instances_{split}.json').is_file()
        and {file_name(i) for i in range(settings[split])}
        <= set(os.listdir(root / split) if (root / split).is_dir() else ())
        for split in SPLITS
    )


def _publish(building: Path, root: Path) -> None:
    """Moves a finished folder to its place."""
    try:
        os.replace(building, root)
        return
    except OSError:
        if not root.is_dir():
            raise
    # Another process was first, or files were missing. Equal settings mean equal
    # bytes, so replacing file by file never takes data from a process reading them.
    for source in sorted(building.rglob('*')):
        target = root / source.relative_to(building)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists():
            os.replace(source, target)


@DATASETS.register_module()
class DigitsDataset(CocoDataset):
    """The digits as an mmdet dataset that makes its own data when they are missing.

    Args:
        data_root: folder of the data; default: the cache, see :func:`digits_root`.
        **kwargs: as for :class:`mmdet.datasets.CocoDataset`.
    """

    METAINFO = {'classes': CLASSES, 'palette': PALETTE}

    def __init__(self, *args: Any, data_root: str | None = None, **kwargs: Any):
        super().__init__(*args, data_root=data_root or digits_root(), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Makes the data if they are not there, then reads the annotation file."""
        ensure_digits(self.data_root)
        return super().load_data_list()
