"""Match tables in a file, so that figures of several evaluations can be compared."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..utils.files import write_atomically
from .matching import MatchTable

_OF_DETECTIONS = ('image', 'label', 'score')
_OF_OBJECTS = ('gt_image', 'gt_label')
_FLAGS = ('hit', 'ignored')


def write_tables(path: Path, tables: Mapping[str, MatchTable]) -> None:
    """Writes the tables of one dataset under several attacks.

    Args:
        path: of the ``.npz`` file.
        tables: by the name of the attack, of the same images and objects.
    """
    first = next(iter(tables.values()))
    arrays: dict[str, Any] = {key: getattr(first, key) for key in _OF_OBJECTS}
    for place, table in enumerate(tables.values()):
        arrays |= {f'{place}/{key}': getattr(table, key) for key in _OF_DETECTIONS}
        arrays |= {f'{place}/{k}': np.packbits(getattr(table, k)) for k in _FLAGS}
    about = {
        'names': list(tables),
        'img_ids': first.img_ids,
        'num_classes': first.num_classes,
        'thresholds': len(first.hit),
        'points': first.points,
    }
    content = io.BytesIO()
    np.savez_compressed(content, about=np.array(json.dumps(about)), **arrays)
    write_atomically(path, content.getvalue())


def read_tables(path: Path) -> dict[str, MatchTable]:
    """Reads what :func:`write_tables` wrote.

    Raises:
        ConfigError: if the file is missing or another one.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays['about']))
            return {
                name: _table(arrays, place, about)
                for place, name in enumerate(about['names'])
            }
    except FileNotFoundError:
        raise ConfigError(f'{path} does not exist.') from None
    except Exception as error:  # each of numpy's readers has its own
        raise ConfigError(f'{path} holds no tables of detections.') from error


def _table(arrays: Any, place: int, about: Mapping[str, Any]) -> MatchTable:
    found = {key: arrays[f'{place}/{key}'] for key in _OF_DETECTIONS}
    count, thresholds = len(found['image']), about['thresholds']
    flags = {
        key: np.unpackbits(arrays[f'{place}/{key}'], count=count * thresholds)
        for key in _FLAGS
    }
    return MatchTable(
        img_ids=tuple(about['img_ids']),
        num_classes=about['num_classes'],
        points=about.get('points', 101),  # earlier files are COCO's
        **found,
        **{key: value.reshape(thresholds, count) == 1 for key, value in flags.items()},
        **{key: arrays[key] for key in _OF_OBJECTS},
    )
