"""Chooses the evaluated images, goes through them, and logs how far a pass is."""

from __future__ import annotations

import datetime
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import collect_results, get_dist_info, get_world_size
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch.utils.data import DataLoader

from ..batch import image_id, split_batch
from ..checks import scores_image_by_image
from ..errors import ConfigError, doing
from ..frame import FramedDataset
from ..region import MeasuredDataset
from ..utils.validation import positive_int

# Images of a batch for every one of a group.
_BATCHES = 4

_OF_IMAGE = ('img_id', 'img_path', 'seg_map_path', 'height', 'width', 'gt_label')
_OF_OBJECT = ('bbox', 'bbox_label', 'ignore_flag', 'mask')


# A part of a batch that stands for itself, and the names of its images' records.
NamedPart = tuple[dict, list[Any]]


class EvaluatedImages:
    """Gives the images of a data loader in parts that stand for themselves.

    Of a detector that is every single image: losses are normalised over a batch and
    images padded to the largest, so that only an image alone has an adversarial
    example, and a prediction, of its own. A classifier keeps images apart by itself.

    Args:
        dataloader: the data loader.
        whole_batches: whether a batch stays together, as of a classifier.

    Attributes:
        dataset: of the loader.
        equal_ids: how many images have the id of another one.
        unique_ids: whether every image has an id of its own, which names its records;
            they are otherwise named by their place in the loader.
    """

    def __init__(self, dataloader: DataLoader, whole_batches: bool) -> None:
        self.dataloader = dataloader
        dataset: Any = dataloader.dataset
        self.dataset = dataset
        measured = MeasuredDataset if whole_batches else FramedDataset
        self._measured = measured(dataset, keep=True)  # every pass asks for all items
        dataset.__getitems__ = self._measured.items  # which the loader asks for items
        self.whole_batches = whole_batches
        self.equal_ids, self.unique_ids = 0, False
        if hasattr(dataset, 'get_data_info'):
            infos = map(dataset.get_data_info, range(len(dataset)))
            ids = {info.get('img_id', info.get('sample_idx')) for info in infos}
            self.equal_ids = len(dataset) - len(ids)
            self.unique_ids = not self.equal_ids

    def __iter__(self) -> Iterator[tuple[int, dict, list[NamedPart]]]:
        """Goes through the loader: index, batch and parts."""
        for index, data_batch in enumerate(self.dataloader):
            yield index, data_batch, self.parts(index, data_batch)

    def parts(self, index: int, data_batch: dict) -> list[NamedPart]:
        """Returns the parts of a batch, and the names of their images' records."""
        rank, world_size = get_dist_info()
        parts = [data_batch] if self.whole_batches else split_batch(data_batch)
        found = []
        for number, part in enumerate(parts):
            keys = ids_of(part)
            if None in keys or not self.unique_ids:
                place = f'{rank} of {world_size}, batch {index}, part {number}'
                keys = [f'{place}, image {each}' for each in range(len(keys))]
            found.append((part, keys))
        return found

    def notes(self) -> list[str]:
        """Returns what the report has to say of how images are loaded."""
        self.load(0)
        if self._measured.reason is None:
            return []
        return [
            'padding cannot be told from pictures, so that it is attacked, too '
            f'({self._measured.reason})'
        ]

    def load(self, index: int) -> dict:
        """Returns a batch of the one image at a place in the dataset."""
        with doing(f'loading image {index} of the dataset'):
            batch: dict = self.dataloader.collate_fn([self._measured[index]])
        return batch


def ids_of(part: dict) -> list[Any]:
    """Returns the ids of a part's images."""
    return [image_id(sample) for sample in part['data_samples']]


def names_of(keys: Sequence[Any]) -> str:
    """Names images in words, for messages."""
    few = ', '.join(map(str, keys[:3])) + (', ...' if len(keys) > 3 else '')
    return f'image {few}' if len(keys) == 1 else f'images {few}'


def left_clean(data_batch: Any) -> list[str]:
    """Says which parts of a batch, beside the images, no attack changes."""
    known = ('inputs', 'data_samples')
    others = [key for key in data_batch if key not in known] if data_batch else []
    if not isinstance(data_batch, dict) or not others:
        return []
    return [
        f'the model also gets {", ".join(map(str, others))} of every batch, which no '
        'attack changes: the figures are of attacks on the images alone.'
    ]


def padding_of(shares: dict[Any, float]) -> dict[str, Any] | None:
    """Sums up how much of the images was padding, for the report.

    Args:
        shares: of each image's pixels, by its name; of this process's images.

    Returns:
        The number of ``images`` with padding, and its ``share`` of all their pixels,
        taking each image for as large as the others; None without padding, and on other
        processes than the main one.
    """
    gathered = collect_results([shares], get_world_size(), device='cpu') or []
    merged = {name: share for each in gathered for name, share in each.items()}
    padded = sorted(share for share in merged.values() if share > 0)
    if not padded:
        return None
    return {'images': len(padded), 'share': sum(padded) / len(padded)}


def choose_images(
    dataloader: DataLoader | dict, num_images: int | None, seed: int
) -> DataLoader | dict:
    """Puts a fixed, seeded choice of images in place of a loader config's dataset."""
    if num_images is None:
        return dataloader
    num_images = positive_int(num_images, 'num_images')
    if not isinstance(dataloader, dict):
        raise ConfigError('num_images needs the dataloader as a config, not built.')
    dataset = MMENGINE_DATASETS.build(dataloader['dataset'])
    dataset.full_init()
    if num_images > len(dataset):
        raise ConfigError(
            f'num_images={num_images} is more than the {len(dataset)} images there are.'
        )
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:num_images]
    try:
        dataset.get_subset_(sorted(map(int, chosen)))
    except (AttributeError, NotImplementedError) as error:
        raise ConfigError(
            f'num_images is not possible with {type(dataset).__name__}, which cannot '
            'be cut to a subset: leave it out, or use a plain dataset.'
        ) from error
    return {**dataloader, 'dataset': dataset}


def enough_for_groups(
    dataloader: DataLoader | dict, attack_batch_size: int
) -> DataLoader | dict:
    """Returns a loader whose batches have enough images for groups of this size.

    Groups are of one input shape, so batches are larger than they. Batches decide
    nothing else.
    """
    wanted = _BATCHES * attack_batch_size
    if isinstance(dataloader, dict):
        if dataloader.get('batch_sampler') is not None:
            return dataloader
        return {
            **dataloader,
            'batch_size': max(wanted, dataloader.get('batch_size', 1)),
        }
    if (dataloader.batch_size or wanted) < attack_batch_size:
        raise ConfigError(
            f'attack_batch_size={attack_batch_size} needs batches of as many images: '
            'give the dataloader as a config, or build it with a larger batch_size.'
        )
    return dataloader


def restrict_metrics(evaluator: Evaluator, dataset: Any) -> None:
    """Tells metrics with an annotation file of their own which images count.

    Otherwise they would score all of the file's images, and the others as missed.
    """
    ids = [dataset.get_data_info(index).get('img_id') for index in range(len(dataset))]
    for metric in evaluator.metrics:
        if hasattr(metric, 'img_ids'):
            metric.img_ids = ids
        elif scores_image_by_image(metric):
            continue
        elif getattr(metric, '_coco_api', None) is not None:
            raise ConfigError(
                f'num_images is not possible with {type(metric).__name__}, which '
                'always scores its whole annotation file.'
            )


def annotations_digest(dataset: Any, folders: bool = True) -> str | None:
    """Hashes what a dataset says about its images; None if it says nothing.

    Args:
        dataset: an mmdet dataset.
        folders: whether it matters where the files of the images lie.
    """
    if not hasattr(dataset, 'get_data_info'):
        return None
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        known = [info.get(key) for key in _OF_IMAGE]
        if not folders:
            known = [Path(e).name if isinstance(e, str) else e for e in known]
        for each in info.get('instances') or ():
            known += [each.get(key) for key in _OF_OBJECT]
        digest.update(repr(known).encode())
    return digest.hexdigest()


class Progress:
    """Logs how far the attacks are, at most every ``interval`` seconds.

    Args:
        names: the attacks in their order.
        batches: batches per pass.
        logger: where the lines go.
        interval: seconds between two lines.
    """

    def __init__(
        self,
        names: list[str],
        batches: int,
        logger: logging.Logger,
        interval: float = 10.0,
    ) -> None:
        self.names = names
        self.batches = batches
        self.logger = logger
        self.interval = interval
        self._number = 0

    def start(self, name: str) -> None:
        """Begins the pass of an attack."""
        self._number += 1
        self._name = name
        self._title = f'Attack {self._number}/{len(self.names)}: {name}'
        self._started = self._logged = time.monotonic()
        self.logger.info(self._title)

    def update(self, done: int) -> None:
        """Reports that ``done`` batches of the pass are finished."""
        now = time.monotonic()
        if now - self._logged < self.interval or done == self.batches:
            return
        self._logged = now
        left = (now - self._started) / done * (self.batches - done)
        eta = datetime.timedelta(seconds=round(left))
        self.logger.info(
            f'{self._title} [{done}/{self.batches}]  eta of this attack: {eta}'
        )

    def finish(self) -> None:
        """Ends the pass."""
        seconds = time.monotonic() - self._started
        self.logger.info(f'{self._name} took {seconds:.1f} s')
