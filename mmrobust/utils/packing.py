"""Predictions as plain tensors, numbers and text, to be read back without pickle."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from pycocotools import mask as coco_mask
from torch import Tensor

_ELEMENTS = {kind.__name__: kind for kind in (InstanceData, PixelData, LabelData)}
_PLAIN = (str, int, float, bool, type(None))
# Whole numbers from this many on are compressed: maps of classes, a number per pixel.
_MANY = 10_000


def pack(output: BaseDataElement, sample: BaseDataElement) -> dict[str, Any]:
    """What the model added to a sample, as tensors, numbers and text if possible."""
    fields = set(output.keys()) - set(sample.keys())
    about = set(output.metainfo_keys()) - set(sample.metainfo_keys())
    return {
        'fields': {name: pack_value(output.get(name)) for name in sorted(fields)},
        'metainfo': {name: pack_value(output.get(name)) for name in sorted(about)},
    }


def unpack(packed: dict[str, Any], sample: BaseDataElement) -> BaseDataElement:
    """The sample with what the model had added to it; the given one stays."""
    output = sample.clone()
    for name, value in packed['fields'].items():
        setattr(output, name, unpack_value(value))
    output.set_metainfo({k: unpack_value(v) for k, v in packed['metainfo'].items()})
    return output


def pack_value(value: Any) -> Any:
    """What a record can hold of a value."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in 'biuf':
            return {'raw': value}
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
    return _pack_boxes(value)


def _pack_tensor(value: Tensor) -> Any:
    if value.dtype == torch.bool and value.dim() == 3:
        return {'masks': _encode(value), 'shape': list(value.shape)}
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


def _pack_boxes(value: Any) -> dict[str, Any]:
    # Not at the top: mmdet may be missing where there are classifiers only.
    try:
        from mmdet.structures.bbox import BaseBoxes, get_box_type
    except ImportError:
        return {'raw': value}
    if not isinstance(value, BaseBoxes):
        return {'raw': value}
    try:
        name, _ = get_box_type(type(value))
    except (KeyError, AssertionError):  # a class that is not registered
        return {'raw': value}
    return {'boxes': value.tensor.detach().cpu().clone(), 'type': name}


def _unpack_boxes(packed: dict[str, Any]) -> Any:
    from mmdet.structures.bbox import get_box_type

    _, kind = get_box_type(packed['type'])
    return kind(packed['boxes'], clone=False)


def unpack_value(packed: Any) -> Any:
    """The value that :func:`pack_value` was given."""
    if isinstance(packed, (list, tuple)):
        return type(packed)(map(unpack_value, packed))
    if not isinstance(packed, dict):
        return packed
    if 'masks' in packed:
        return _decode(packed['masks'], packed['shape'])
    if 'zlib' in packed:
        content = bytearray(zlib.decompress(packed['zlib'].numpy().tobytes()))
        flat = torch.frombuffer(content, dtype=packed['empty'].dtype)
        return flat.reshape(packed['shape'])
    if 'array' in packed:
        return unpack_value(packed['array']).numpy()
    if 'boxes' in packed:
        return _unpack_boxes(packed)
    if 'raw' in packed:
        return packed['raw']
    fields = {key: unpack_value(inner) for key, inner in packed['fields'].items()}
    return _ELEMENTS[packed['element']](**fields)


def _encode(masks: Tensor) -> list[dict[str, Any]]:
    """Run lengths, since 100 masks of a picture take 30 MB and more."""
    arrays = masks.detach().cpu().numpy().astype(np.uint8)
    found = [coco_mask.encode(np.asfortranarray(array)) for array in arrays]
    return [
        {'size': list(each['size']), 'counts': each['counts'].decode()}
        for each in found
    ]


def _decode(encoded: list[dict[str, Any]], shape: list[int]) -> Tensor:
    if not encoded:
        return torch.zeros(shape, dtype=torch.bool)
    stacked = np.stack([coco_mask.decode(each) for each in encoded])
    return torch.from_numpy(stacked.astype(bool))


def is_plain(content: Any) -> bool:
    """Whether a record can be read from disk without running foreign code."""
    if isinstance(content, dict):
        return 'raw' not in content and all(map(is_plain, content.values()))
    return not isinstance(content, (list, tuple)) or all(map(is_plain, content))
