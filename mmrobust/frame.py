"""Puts the ground truth of a batch into the frame of the network's input.

Where a pipeline left the boxes of an image is measured, and not read off the names of
its transforms: mmdet's test pipelines load annotations after resizing, so that boxes
are in the frame of the original picture, others move them along with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from .errors import ConfigError, short
from .geometry import Affine, fit, ramp
from .probing import Probe
from .region import MeasuredDataset

# Metainfo of a measured sample: 'input' or 'original', where its boxes are, or a
# sentence why that is unknown; and the map from the original picture to the input, None
# where scale_factor says it.
FRAME, TO_INPUT = 'gt_frame', 'to_input'

# The fields of a sample that lie somewhere in its image.
_PLACED = ('gt_instances', 'ignored_instances', 'gt_sem_seg', 'gt_panoptic_seg')

# Pixels. Boxes that a pipeline leaves alone do not change at all; those that it moves
# land where the picture does, up to rounding of its size.
_EQUAL, _MOVED = 0.01, 1.5


class FramedDataset(MeasuredDataset):
    """The same, whose samples also tell in which frame their boxes are."""

    def __init__(self, dataset: Any, keep: bool = False) -> None:
        super().__init__(dataset, keep)
        self._probes += [Probe(dataset, partial(ramp, axis)) for axis in (1, 0)]

    def _measure(
        self,
        index: int,
        sample: BaseDataElement,
        image: Tensor,
        others: list[Tensor | None],
    ) -> dict[str, Any]:
        found = super()._measure(index, sample, image, others)
        frame, to_input = self._place(index, sample, others)
        return {**found, FRAME: frame, TO_INPUT: to_input}

    def _place(
        self, index: int, sample: BaseDataElement, others: list[Tensor | None]
    ) -> tuple[str, Affine | None]:
        boxes, size = _boxes_of(sample), sample.get('ori_shape', None)
        to_input = scaling = Affine.scaling(*sample.get('scale_factor', (1, 1)))
        if size is not None and min(size[:2]) > 1:  # a line has no slope across
            found = _map(others, size)
            if found is None and len(boxes):
                reason = short(self.reason or 'it moves it by no affine map')
                return f'its pipeline was not understood ({reason})', None
            if found and not found.near(scaling, size[1], size[0], pixels=1):
                to_input = found
        if len(boxes):
            infos: Any = getattr(self.dataset, 'get_data_info', lambda _: {})
            frame = _frame_of(boxes, infos(index), to_input, sample)
        else:
            frame = _frame_of_map(sample)
        return frame, None if to_input is scaling else to_input


def _map(others: Sequence[Tensor | None], size: Sequence[int]) -> Affine | None:
    """Returns the map of a picture, by what two colours and two ramps became."""
    images = [np.asarray(each[0]) for each in others if each is not None]
    if len(images) < 4 or len({image.shape for image in images}) > 1:
        return None
    dark, light, columns, rows = images
    return fit(dark, light, columns, rows, size[:2])


def _boxes_of(sample: BaseDataElement) -> np.ndarray:
    found = [
        np.asarray(_plain(sample.get(key).bboxes), dtype=float)
        for key in ('gt_instances', 'ignored_instances')
        if 'bboxes' in sample.get(key, ())
    ]
    return np.concatenate([each for each in found if len(each)] or [np.zeros((0, 4))])


def _frame_of(
    boxes: np.ndarray, info: dict, to_input: Affine, sample: BaseDataElement
) -> str:
    """Says where the boxes of a sample are, by those that its annotation has."""
    listed = [each['bbox'] for each in info.get('instances', ()) if 'bbox' in each]
    if not listed:
        return 'the dataset does not tell which boxes it has annotated'
    given = np.array(listed, dtype=float)
    if boxes.shape[1] != 4 or given.shape[1] != 4:
        boxes, given = _centres(boxes), _centres(given)
        moved, least = [to_input.points(given)], 2 * _MOVED
    else:
        whole, limits = to_input.boxes(given), np.tile(_shape_of(sample)[::-1], 2)
        moved, least = [whole, whole.clip(0, limits)], _MOVED
    if _gap(boxes, given) <= _EQUAL:
        return 'original'
    if min(_gap(boxes, each) for each in moved) <= least + 5e-3 * max(boxes.max(), 0):
        return 'input'
    return 'its boxes are neither where they were annotated nor where the picture went'


def _gap(boxes: np.ndarray, among: np.ndarray) -> float:
    """Returns how far the oddest of the boxes is from the nearest of the others."""
    return float(np.abs(boxes[:, None] - among[None]).max(-1).min(1).max())


def _centres(boxes: np.ndarray) -> np.ndarray:
    """Returns the centres of boxes (4 corners), polygons (8) or turned boxes (5)."""
    if boxes.shape[1] == 5:  # x, y, width, height, angle
        return boxes[:, :2]
    return boxes.reshape(len(boxes), -1, 2).mean(1)


def _frame_of_map(sample: BaseDataElement) -> str:
    """Says where a segmentation map is that comes without boxes."""
    if 'gt_sem_seg' not in sample or 'img_shape' not in sample:
        return 'input'
    size = tuple(sample.gt_sem_seg.sem_seg.shape[-2:])
    return 'input' if size == tuple(sample.img_shape[:2]) else 'original'


def attack_samples(
    data_samples: Sequence[BaseDataElement],
    device: torch.device | str,
    gt_frame: str = 'auto',
) -> list[BaseDataElement]:
    """Copies the ground truth and puts it into the network's input frame.

    A loss computed on boxes of another frame is wrong without any error. The evaluator
    still needs the original samples, hence the copy; all that a sample holds is copied,
    and boxes, masks and segmentation maps are moved.

    Args:
        data_samples: samples of the batch with ``gt_instances``.
        device: where the copies live.
        gt_frame: where the boxes are: ``'original'``, in the picture, ``'input'``, in
            what the network gets, or ``'auto'``, where :class:`FramedDataset` has
            measured that they are.

    Returns:
        New samples with boxes, masks and segmentation maps in the input frame.

    Raises:
        ConfigError: if the frame could not be measured.
    """
    return [_attack_sample(sample, device, gt_frame) for sample in data_samples]


def _attack_sample(
    sample: BaseDataElement, device: torch.device | str, gt_frame: str
) -> BaseDataElement:
    if not any(key in sample for key in _PLACED):  # a classifier's
        gt_frame = 'input'
    if gt_frame == 'auto':
        gt_frame = sample.get(FRAME, 'nobody has measured it')
    if gt_frame not in ('input', 'original'):
        raise ConfigError(
            f'the frame of the boxes of image {sample.get("img_id")} is unknown: '
            f"{gt_frame}; set gt_frame='original' or 'input' in the test loop."
        )
    copy = type(sample)(metainfo=sample.metainfo)
    for key in sample.keys():  # noqa: SIM118 (no dict)
        # Not clone(), which shares the boxes: what follows must not reach the
        # evaluator's samples.
        value = deepcopy(sample.get(key))
        copy.set_field(value.to(device) if hasattr(value, 'to') else value, key)
    to_input = sample.get(TO_INPUT, None)
    scale = tuple(float(each) for each in sample.get('scale_factor', (1, 1)))
    if gt_frame == 'input' or (to_input is None and scale == (1.0, 1.0)):
        return copy
    size = _shape_of(sample)
    for key in ('gt_instances', 'ignored_instances'):
        instances = copy.get(key, None)
        if instances is not None and to_input is None:
            _rescale(instances, scale, size)
        elif instances is not None:
            copy.set_field(_moved(instances, to_input, size), key)
    if 'gt_sem_seg' in copy:
        segmentation = copy.gt_sem_seg.sem_seg
        if to_input is None:
            floats = segmentation[None].float()
            moved = F.interpolate(floats, size=size, mode='nearest')[0]
        else:
            layers = segmentation.cpu().numpy().astype(np.float32)
            moved = torch.from_numpy(_warped(layers, to_input, size, 255))
        copy.gt_sem_seg = PixelData(sem_seg=moved.to(segmentation))
    return copy


def _rescale(instances: Any, scale: tuple, size: tuple[int, int]) -> None:
    boxes = instances.get('bboxes', None)
    if boxes is not None and hasattr(boxes, 'rescale_'):
        boxes.rescale_(scale)
    elif boxes is not None:
        instances.bboxes = boxes * boxes.new_tensor(scale * (boxes.shape[-1] // 2))
    masks = instances.get('masks', None)
    if masks is not None:
        instances.masks = masks.resize(size)


def _moved(instances: Any, to_input: Affine, size: tuple[int, int]) -> Any:
    """Moves instances that a resize alone does not bring to the input's frame.

    Returns:
        Those of which something is inside, since crops cut some off.
    """
    boxes = instances.get('bboxes', None)
    inside = torch.ones(len(instances), dtype=torch.bool)
    if boxes is not None:
        plain = _plain(boxes)
        if plain.shape[-1] != 4:
            raise ConfigError(
                'boxes that are not upright cannot be brought to where the pipeline '
                'moved their picture: load annotations at the front of the pipeline.'
            )
        limits = np.tile(size[::-1], 2)
        mapped = to_input.boxes(plain.cpu().numpy()).clip(0, limits)
        inside = torch.from_numpy((mapped[:, 2:] > mapped[:, :2]).all(1))
        inside |= (plain[:, 2:] <= plain[:, :2]).any(1).cpu()
        there = torch.from_numpy(mapped).to(plain)
        instances.bboxes = type(boxes)(there) if hasattr(boxes, 'tensor') else there
    masks = instances.get('masks', None)
    if masks is not None and hasattr(masks, 'to_ndarray'):
        layers = masks.to_ndarray()
        instances.masks = type(masks)(*_masks(masks, layers, to_input, size))
    return instances[inside.to(plain.device)] if boxes is not None else instances


def _masks(
    masks: Any, layers: np.ndarray, to_input: Affine, size: tuple[int, int]
) -> tuple[Any, int, int]:
    if isinstance(masks.masks, np.ndarray):
        return _warped(layers, to_input, size, 0), *size
    polygons = [
        [to_input.points(part.reshape(-1, 2)).reshape(-1) for part in each]
        for each in masks.masks
    ]
    return polygons, *size


def _warped(
    layers: np.ndarray, to_input: Affine, size: tuple[int, int], outside: int
) -> np.ndarray:
    """Moves maps (N, H, W), nearest neighbour."""
    # OpenCV counts from the centre of the first pixel.
    shift = to_input.points(np.array([0.5, 0.5])) - 0.5
    matrix = np.concatenate([to_input.matrix, shift[:, None]], axis=1)
    moved = [
        cv2.warpAffine(
            np.ascontiguousarray(layer), matrix, size[::-1], flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT, borderValue=outside,
        )
        for layer in layers
    ]  # fmt: skip
    return np.stack(moved) if moved else np.zeros((0, *size), layers.dtype)


def _plain(boxes: Any) -> Tensor:
    found: Tensor = getattr(boxes, 'tensor', boxes)
    return found


def _shape_of(sample: BaseDataElement) -> tuple[int, int]:
    """Height and width of a sample's image in the network's input."""
    if 'img_shape' not in sample:
        raise ConfigError(
            'the images come without their img_shape, which models and attacks need: '
            'add it to the meta_keys of PackDetInputs.'
        )
    height, width = sample.img_shape[:2]
    return height, width


def from_input(sample: BaseDataElement) -> Affine:
    """Returns the map from the network's input back to the original picture."""
    to_input: Affine | None = sample.get(TO_INPUT, None)
    return (to_input or Affine.scaling(*sample.get('scale_factor', (1, 1)))).inverse()


def object_boxes(sample: BaseDataElement) -> Tensor | None:
    """Returns a sample's upright boxes (n, 4) as they are; None if it has none."""
    if 'bboxes' not in sample.get('gt_instances', ()):
        return None
    boxes = _plain(sample.gt_instances.bboxes)
    return boxes if boxes.shape[-1] == 4 else None


def count_boxes_outside(samples: Sequence[BaseDataElement]) -> int:
    """Counts boxes whose centre lies outside their image.

    Args:
        samples: samples in the input frame, from :func:`attack_samples`.

    Returns:
        The number of such boxes; more than a few mean a wrong ``gt_frame``.
    """
    outside = 0
    for sample in samples:
        height, width = _shape_of(sample)
        boxes = sample.gt_instances.bboxes
        boxes = boxes.tensor if hasattr(boxes, 'tensor') else boxes
        if len(boxes) and boxes.shape[-1] == 4:
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            size = centres.new_tensor((width, height))
            outside += int(((centres < 0) | (centres > size)).any(dim=1).sum())
    return outside
