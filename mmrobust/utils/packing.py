"""Packs predictions as tensors, numbers and text, to be read without pickle."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from torch import Tensor

_ELEMENTS = {kind.__name__: kind for kind in (InstanceData, PixelData, LabelData)}
_PLAIN = (str, int, float, bool, type(None))
# Whole numbers from this many on are compressed: 100 masks of a picture take 30 MB.
_MANY = 10_000


def pack(output: BaseDataElement, sample: BaseDataElement) -> dict[str, Any]:
    """Returns what the model added to a sample, see :func:`pack_value`."""
    fields = set(output.keys()) - set(sample.keys())
    about = set(output.metainfo_keys()) - set(sample.metainfo_keys())
    return {
        'fields': {name: pack_value(output.get(name)) for name in sorted(fields)},
        'metainfo': {name: pack_value(output.get(name)) for name in sorted(about)},
    }


def unpack(packed: dict[str, Any], sample: BaseDataElement) -> BaseDataElement:
    """Returns a copy of the sample with what the model had added to it."""
    output = sample.clone()
    for name, value in packed['fields'].items():
        setattr(output, name, unpack_value(value))
    output.set_metainfo({k: unpack_value(v) for k, v in packed['metainfo'].items()})
    return output


def pack_value(value: Any) -> Any:
    """Returns what a record can hold of a value, ``{'raw': value}`` if nothing."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return {'array': pack_value(torch.from_numpy(np.ascontiguousarray(value)))}
    if isinstance(value, Tensor):
        return _pack_tensor(value.detach())
    if type(value) in _ELEMENTS.values():
        fields = {key: pack_value(inner) for key, inner in value.items()}
        return {'element': type(value).__name__, 'fields': fields}
    if type(value) in (list, tuple):
        return type(value)(map(pack_value, value))
    if type(value) in _PLAIN:
        return value
    name = _box_type(value)
    if name is None:
        return {'raw': value}
    return {'boxes': value.tensor.detach().cpu().clone(), 'type': name}


def _pack_tensor(value: Tensor) -> Any:
    # A copy: part of a larger tensor would keep all of it, on disk too.
    value = value.cpu().clone()
    if value.is_floating_point() or value.numel() < _MANY:
        return value
    content = zlib.compress(value.numpy().tobytes(), level=1)
    return {
        'zlib': torch.frombuffer(bytearray(content), dtype=torch.uint8),
        'empty': value.new_empty(0),
        'shape': list(value.shape),
    }


def _box_type(value: Any) -> str | None:
    """Returns the name under which mmdet knows the class of boxes, if it does."""
    # Not at the top: mmdet may be missing where there are classifiers only.
    try:
        from mmdet.structures.bbox import get_box_type

        return str(get_box_type(type(value))[0])
    except (ImportError, KeyError, AssertionError):
        return None


def unpack_value(packed: Any) -> Any:
    """Returns the value that :func:`pack_value` was given."""
    if isinstance(packed, (list, tuple)):
        return type(packed)(map(unpack_value, packed))
    if not isinstance(packed, dict):
        return packed
    if 'zlib' in packed:
        content = bytearray(zlib.decompress(packed['zlib'].numpy().tobytes()))
        flat = torch.frombuffer(content, dtype=packed['empty'].dtype)
        return flat.reshape(packed['shape'])
    if 'array' in packed:
        return unpack_value(packed['array']).numpy()
    if 'boxes' in packed:
        from mmdet.structures.bbox import get_box_type

        return get_box_type(packed['type'])[1](packed['boxes'], clone=False)
    if 'raw' in packed:
        return packed['raw']
    fields = {key: unpack_value(inner) for key, inner in packed['fields'].items()}
    return _ELEMENTS[packed['element']](**fields)


def is_plain(content: Any) -> bool:
    """Returns whether a record can be read from disk without running foreign code."""
    if isinstance(content, dict):
        return 'raw' not in content and all(map(is_plain, content.values()))
    return not isinstance(content, (list, tuple)) or all(map(is_plain, content))
