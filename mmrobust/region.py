"""Measures which pixels of an image depend on its picture: all others are padding.

A pixel of what the data loader yields may be attacked if it depends on the picture that
was loaded: what a pipeline has put around it (``Pad``, letterboxes, the gaps of a
mosaic) or over it (``CutOut``) is nothing that an adversary has access to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import Tensor

from .probing import Probe, decoded_once
from .utils.packing import pack_value, unpack_value
from .utils.seeding import mark_draws
from .utils.store import digest_of_images

# The field of a data sample that holds the region, bool (1, H, W). Samples all of whose
# pixels are attackable have none.
REGION = 'attackable'

# Of two pictures of one colour each: as far apart as possible, but not each other's
# negative, which solarising would take for the same.
COLOURS = (0, 254)


class MeasuredDataset:
    """The items of a dataset, whose samples tell which of their pixels are attackable.

    Each item is made three times with the same random draws: of its own picture and of
    two pictures of one colour. Pixels that are equal in all three are padding.

    Args:
        dataset: a dataset of mmengine or a wrapper of such. Of others, and where a
            pipeline cannot be run on other pictures, all pixels count as attackable;
            a warning says so.
        keep: keep what was measured of an item for the next time that it is asked for.
            It counts as long as the item's image comes out the same, value by value.

    Attributes:
        reason: why regions are not measured, None if they are.
    """

    def __init__(self, dataset: Any, keep: bool = False) -> None:
        self.dataset = dataset
        self.reason: str | None = None
        self._keep = keep
        # Of each item: what it was measured on, and what was found.
        self._kept: dict[int, tuple[str, dict[str, Any]]] = {}
        self._probes = [
            Probe(dataset, partial(np.full_like, fill_value=colour))
            for colour in COLOURS
        ]

    def __getitem__(self, index: int) -> Any:
        digest, found = self._kept.get(index, ('', {}))
        if digest:
            take_back = mark_draws()
            item = self.dataset[index]
            image = _image(item)
            if image is not None and digest == digest_of_images([image]):
                _tell(item['data_samples'], found)
                return item
            take_back()
        with decoded_once():
            others = [] if self.reason else self._others(index)
            item = self.dataset[index]
        image = _image(item)
        if image is not None:
            sample = item['data_samples']
            found = self._measure(index, sample, image, list(map(_image, others)))
            _tell(sample, found)
            if self._keep:
                found[REGION] = pack_value(found[REGION])
                self._kept[index] = digest_of_images([image]), found
        return item

    def _measure(
        self,
        index: int,
        sample: BaseDataElement,
        image: Tensor,
        others: list[Tensor | None],
    ) -> dict[str, Any]:
        """Returns what a sample is to be told, by what other pictures became."""
        return {REGION: depends(image, *others[:2]) if others else None}

    def _others(self, index: int) -> list[Any]:
        try:
            return [probe[index] for probe in self._probes]
        except Exception as error:  # of transforms that do not bear such pictures
            self.reason = f'{type(error).__name__}: {error}'
            print_log(
                'padding cannot be told from pictures, so that all pixels of an image '
                f'count as attackable ({self.reason})',
                logger='current',
                level=logging.WARNING,
            )
            return []

    def items(self, indices: Sequence[int]) -> list[Any]:
        """Returns several items, as a dataset's ``__getitems__`` does for torch."""
        return [self[index] for index in indices]


def _tell(sample: BaseDataElement, found: dict[str, Any]) -> None:
    """Puts into a sample what was measured of it."""
    about = dict(found)
    region = unpack_value(about.pop(REGION))
    if region is not None:
        sample.set_field(region, REGION)
    sample.set_metainfo(about)


def _image(item: Any) -> Tensor | None:
    """The image of a packed sample, if it has one and a place for a region."""
    if not isinstance(item, dict) or 'data_samples' not in item:
        return None
    image = item.get('inputs')
    if not isinstance(item['data_samples'], BaseDataElement):
        return None
    return image if isinstance(image, Tensor) and image.dim() == 3 else None


def depends(image: Tensor, dark: Tensor | None, light: Tensor | None) -> Tensor | None:
    """Returns which pixels depend on the picture, bool (1, H, W); None if all do.

    Args:
        image: the image (C, H, W).
        dark: what another picture became.
        light: what a third one became. An image of another shape says nothing.
    """
    if dark is None or light is None or not image.shape == dark.shape == light.shape:
        return None
    region = _differ(dark, light)
    if not region.all():
        region |= _differ(image, dark)
    return None if region.all() else region[None]


def _differ(image: Tensor, other: Tensor) -> Tensor:
    """The pixels (H, W) that are not equal."""
    return reduce(torch.bitwise_or, (image != other).unbind())  # faster than any()


def region_of(sample: Any) -> Tensor | None:
    """Returns the attackable pixels of a sample, bool (1, H, W); None for all."""
    return sample.get(REGION, None) if isinstance(sample, BaseDataElement) else None


def regions_in(data_batch: dict) -> list[Tensor | None]:
    """Returns the attackable pixels of all images of a batch, see :func:`region_of`."""
    samples = data_batch['data_samples']
    if isinstance(samples, dict):
        return samples.get(REGION) or [None] * len(data_batch['inputs'])
    return [region_of(sample) for sample in samples]


def collated(collate: Callable[[Any], Any], items: Any) -> Any:
    """Makes a batch, and keeps regions where it has no sample of each image."""
    batch = collate(items)
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    if isinstance(samples, dict):
        samples[REGION] = [region_of(item['data_samples']) for item in items]
    return batch


def padding_share(sample: Any) -> float:
    """Returns the share of an image's pixels that are not attackable."""
    region = region_of(sample)
    return 0.0 if region is None else 1 - float(region.float().mean())


def restored(
    images: Sequence[Tensor], clean: Sequence[Tensor], samples: Sequence[Any]
) -> list[Tensor]:
    """Puts padding back, for attacks that know nothing of regions.

    Args:
        images: attacked images (C, H, W).
        clean: the same before the attack.
        samples: of the images.
    """
    return [
        image if region is None else torch.where(region.to(image.device), image, own)
        for image, own, region in zip(
            images, clean, map(region_of, samples), strict=True
        )
    ]
