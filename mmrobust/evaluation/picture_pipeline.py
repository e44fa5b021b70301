"""Follows a test pipeline from a picture on disk to the network's input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..corruptions import CorruptPicture
from ..errors import ConfigError
from .original_pixels import Geometry, Resizer

_RESIZING = ('Resize', 'FixScaleResize', 'ResizeShortestEdge')
_ANNOTATIONS = ('gt_instances', 'ignored_instances', 'gt_sem_seg', 'gt_panoptic_seg')


class PicturePipeline:
    """Takes the test pipeline of a dataset apart at the loaded picture.

    The pipeline must load a colour picture, resize it bilinearly with OpenCV at most
    once, then pad it right and bottom at most once; annotations may be loaded
    anywhere. That is what mmdet's test pipelines do.

    Args:
        dataset: an mmdet dataset with its pipeline; a subset is as good.

    Raises:
        ConfigError: if the dataset has no pipeline, or its pipeline a transform that
            this class cannot follow.
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, 'pipeline') or not hasattr(dataset, 'get_data_info'):
            raise ConfigError(
                f'{type(dataset).__name__} has no pipeline of its own, which original '
                'pixels need: test on a plain dataset, not on a wrapper of some.'
            )
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        self.dataset = dataset
        self.transforms = list(dataset.pipeline.transforms)
        self._loader, self._resize, self._pad = _read(self.transforms)
        # A part of loading: what is attacked, and exchanged, is the corrupted picture.
        self._corruptions = [t for t in self.transforms if _corrupts(t)]
        self._indices: dict[Any, int] = {}
        self._seen = 0
        self._geometries: dict[tuple[int, int], Geometry] = {}

    def index(self, img_id: Any) -> int:
        """Returns the place of an image in the dataset.

        Images are looked through as far as needed only: an evaluation asks for them
        in order, and a dataset may have hundreds of thousands.

        Raises:
            ConfigError: if there is no such image.
        """
        while img_id not in self._indices and self._seen < len(self.dataset):
            found = self.dataset.get_data_info(self._seen).get('img_id')
            self._indices.setdefault(found, self._seen)
            self._seen += 1
        if img_id not in self._indices:
            raise ConfigError(
                f'no image of the dataset has the img_id {img_id!r}: is it the dataset '
                'that the picture is from?'
            )
        return self._indices[img_id]

    def picture(self, img_id: Any) -> Tensor:
        """Loads the picture as the pipeline does.

        Returns:
            float32 (C, H, W) in pixel units of 0-255, in the loader's channel order
            (BGR in mmdet).
        """
        return torch.from_numpy(self._load(img_id)).permute(2, 0, 1).float()

    def rerun(
        self,
        img_id: Any,
        picture: np.ndarray | str | os.PathLike,
        sample: BaseDataElement | None = None,
    ) -> dict[str, Any]:
        """Runs the unchanged rest of the pipeline on another picture.

        Args:
            img_id: the image that the picture takes the place of.
            picture: (H, W, C) in the loader's channel order, uint8 as files are, or
                float32, which no step rounds; or the path of a file, which the
                pipeline's own loader reads. A picture may have another size than the
                original: predictions come out in the original's frame all the same.
            sample: what the unchanged pipeline gave for the image. Saves reading the
                image again where its size and annotations are needed.

        Returns:
            A batch of this one image, as the data loader makes it. Annotations are the
            same as in the unchanged pipeline.

        Raises:
            ConfigError: for a picture of another form.
        """
        results = self.dataset.get_data_info(self.index(img_id))
        original = self._original(img_id if sample is None else sample)
        path = results.get('img_path')
        for transform in self.transforms:
            if _corrupts(transform):
                continue
            if transform is not self._loader:
                results = transform(results)
            elif isinstance(picture, np.ndarray):
                results['img'] = self._checked(picture)
                results['img_shape'] = results['ori_shape'] = picture.shape[:2]
            else:
                results = transform({**results, 'img_path': os.fspath(picture)})
                results['img_path'] = path
            if transform is self._loader:
                size = results['img_shape']
        batch = pseudo_collate([results])
        if tuple(size) != original:
            if sample is None:
                sample = self.dataset[self.index(img_id)]['data_samples']
            _put_into_frame(batch['data_samples'][0], size, original, sample)
        return batch

    def resizer(self, image: Any) -> Resizer:
        """Returns the differentiable copy of what the pipeline does to a picture.

        Args:
            image: img_id, or the sample that the pipeline gave for it.
        """
        pad_val = 0 if self._pad is None else self._pad.pad_val.get('img', 0)
        if isinstance(pad_val, (list, tuple)):
            pad_val = tuple(pad_val)
        return Resizer(self.geometry(image), pad_val)

    def geometry(self, image: Any) -> Geometry:
        """Returns an image's (img_id or sample) sizes on its way to the network."""
        original = self._original(image)
        if original not in self._geometries:
            # Asking the transforms themselves: each has its own way to round.
            results: dict[str, Any] = {'img': np.zeros((*original, 3), np.uint8)}
            sizes = [original]
            for transform in (self._resize, self._pad):
                if transform is not None:
                    results = transform(results)
                sizes.append(results['img'].shape[:2])
            self._geometries[original] = Geometry(*sizes)
        return self._geometries[original]

    def without_padding(self, image: Any, network_input: Tensor) -> Tensor:
        """Cuts padding off: (C, h', w') of a network input (C, h, w)."""
        height, width = self.geometry(image).resized
        return network_input[..., :height, :width]

    def _original(self, image: Any) -> tuple[int, int]:
        """Returns height and width of the picture on disk."""
        if isinstance(image, BaseDataElement) and 'ori_shape' in image:
            height, width = image.ori_shape[:2]
            return int(height), int(width)
        if isinstance(image, BaseDataElement):
            image = image.img_id
        height, width = self._load(image).shape[:2]
        return height, width

    def _load(self, img_id: Any) -> np.ndarray:
        results = self._loader(self.dataset.get_data_info(self.index(img_id)))
        if results is None:
            raise ConfigError(f'the image with img_id {img_id!r} cannot be read.')
        for corruption in self._corruptions:
            results = corruption(results)
        return np.asarray(results['img'])

    def _checked(self, picture: np.ndarray) -> np.ndarray:
        if picture.ndim != 3 or picture.dtype not in (np.uint8, np.float32):
            raise ConfigError(
                f'a picture must be uint8 or float32 of shape (H, W, C), and this one '
                f'is {picture.dtype} of shape {picture.shape}.'
            )
        if self._loader.to_float32:
            picture = picture.astype(np.float32)
        return np.ascontiguousarray(picture)


def _put_into_frame(
    sample: BaseDataElement,
    size: Sequence[int],
    original: tuple[int, int],
    ordinary: BaseDataElement,
) -> None:
    """Makes boxes of a picture of another size come out in the original's frame.

    mmdet divides predicted boxes by ``scale_factor``, (width, height), and pastes masks
    into ``ori_shape``.
    """
    width_scale, height_scale = sample.get('scale_factor', (1.0, 1.0))
    factors = (
        float(width_scale) * size[1] / original[1],
        float(height_scale) * size[0] / original[0],
    )
    sample.set_metainfo({'scale_factor': factors, 'ori_shape': original})
    for key in _ANNOTATIONS:
        if key in ordinary:
            sample.set_field(ordinary.get(key), key)


def _read(transforms: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Finds the loader, and what resizes and pads, if anything does."""
    loader = resize = pad = None
    for transform in transforms:
        name = type(transform).__name__
        if name == 'LoadImageFromFile':
            _check_loader(transform, loader)
            loader = transform
        elif name in _RESIZING:
            _check_resize(transform, name)
            if resize is not None or pad is not None:
                _refuse(f'{name} follows on {type(pad or resize).__name__}')
            resize = transform
        elif name == 'Pad':
            if transform.padding_mode != 'constant':
                _refuse(f'Pad has the mode {transform.padding_mode!r}')
            if pad is not None:
                _refuse('there are two Pad')
            pad = transform
        elif not (
            name == 'PackDetInputs'
            or ('Annotations' in name and name[:4] == 'Load')
            or _corrupts(transform)
        ):
            _refuse(f'{name} is none of LoadImageFromFile, {", ".join(_RESIZING)}, Pad')
        if loader is None and name in (*_RESIZING, 'Pad'):
            _refuse(f'{name} comes before LoadImageFromFile')
    if loader is None:
        _refuse('it has no LoadImageFromFile')
    if type(transforms[-1]).__name__ != 'PackDetInputs':
        _refuse('it does not end with PackDetInputs')
    if 'img_id' not in transforms[-1].meta_keys:
        _refuse('PackDetInputs packs no img_id, by which pictures are found')
    return loader, resize, pad


def _corrupts(transform: Any) -> bool:
    return isinstance(transform, CorruptPicture)


def _check_loader(transform: Any, before: Any) -> None:
    if before is not None:
        _refuse('there are two LoadImageFromFile')
    if not str(transform.color_type).startswith('color'):
        _refuse(f'LoadImageFromFile loads {transform.color_type!r} and not colour')


def _check_resize(transform: Any, name: str) -> None:
    inner = transform.resize if name == 'ResizeShortestEdge' else transform
    if type(inner).__name__ not in ('Resize', 'FixScaleResize'):
        _refuse(f'{name} uses {type(inner).__name__}')
    if inner.backend != 'cv2' or inner.interpolation != 'bilinear':
        _refuse(
            f'{name} interpolates with {inner.interpolation!r} of {inner.backend!r} '
            "and not with 'bilinear' of 'cv2'"
        )


def _refuse(reason: str) -> None:
    raise ConfigError(
        f'the test pipeline cannot be followed from the picture to the network '
        f"({reason}): simplify it, or attack the network's input."
    )
