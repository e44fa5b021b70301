"""The images that AutoAttack is run on, and at which resolution."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..utils.configs import innermost
from ..utils.validation import positive_int

# The part of the resized image that is cropped, as on ImageNet at 224 of 256.
CROP_RATIO = 0.875

# Steps that leave the geometry alone; CropBox cuts out what is to be resized.
_LOADING = (
    'LoadImageFromFile',
    'PackInputs',
    'Collect',
    'ToTensor',
    'ImageToTensor',
    'CropBox',
)


def choose_by_file(loader: DataLoader | dict, path: str) -> dict[str, Any]:
    """Puts the images that a file lists in place of a loader config's dataset.

    Args:
        loader: config of the data loader.
        path: text file with one image per line, as a path (``val/n01440764/x.JPEG``,
            as RobustBench lists its ImageNet images) or a file name; empty lines and
            lines that begin with ``#`` do not count.

    Raises:
        ConfigError: if the file, or images of it, are not there.
    """
    if not isinstance(loader, dict):
        raise ConfigError('image_ids needs the dataloader as a config, not built.')
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'image list {path!r} cannot be read ({error}).') from error
    lines = [line.strip().replace('\\', '/') for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith('#')]
    if not names:
        raise ConfigError(f'image list {path!r} is empty: write one image per line.')
    dataset = MMENGINE_DATASETS.build(loader['dataset'])
    dataset.full_init()
    paths = [str(info.get('img_path')) for info in _infos(dataset)]
    dataset.get_subset_(_find(names, [p.replace('\\', '/') for p in paths], path))
    return {**loader, 'dataset': dataset}


def _find(names: list[str], paths: list[str], path: str) -> list[int]:
    """Finds the indices of the listed images in the dataset, in its order."""
    by_end: dict[tuple[str, ...], list[int]] = {}
    for index, image in enumerate(paths):
        parts = PurePosixPath(image).parts[::-1]
        for count in range(1, len(parts) + 1):
            by_end.setdefault(parts[:count], []).append(index)
    # Where every name is unique the folders do not matter: ImageNet's validation
    # images lie in one folder or in one per class.
    unique = len({PurePosixPath(image).name for image in paths}) == len(paths)
    missing, found = [], []
    for name in names:
        wanted = PurePosixPath(name).parts[::-1]
        # Otherwise the class folder must be the same, and as much more as can be.
        counts = [1] if unique else range(len(wanted), min(len(wanted), 2) - 1, -1)
        ends = (by_end.get(wanted[:count], []) for count in counts)
        candidates: list[int] = next(filter(None, ends), [])
        if len(candidates) > 1:
            raise ConfigError(
                f'image list {path!r} names {name!r}, which {len(candidates)} images '
                'of the dataset are called: write more of its path.'
            )
        if not candidates:
            missing.append(name)
        found += candidates
    if missing:
        raise ConfigError(
            f'{len(missing)} of the {len(names)} images of {path!r} are not in the '
            f'dataset of {len(paths)} images, such as {missing[0]!r}.'
        )
    twice = [paths[index] for index, count in Counter(found).items() if count > 1]
    if twice:
        raise ConfigError(
            f'image list {path!r} names {len(twice)} images twice, such as '
            f'{twice[0]!r}.'
        )
    return sorted(found)


def _infos(dataset: Any) -> list[dict[str, Any]]:
    """Returns what a dataset says about each image, nothing if it says nothing."""
    if not hasattr(dataset, 'get_data_info'):
        return [{}] * len(dataset)
    return [dataset.get_data_info(index) for index in range(len(dataset))]


class ImageList:
    """The images of a dataset under names that do not depend on where it lies.

    Args:
        dataset: a dataset of classification.

    Attributes:
        ids: per image its path below what all images have in common, or its number
            where it has no file.
        sha256: hash of the names and labels.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        root = str(getattr(dataset, 'img_prefix', None) or '').replace('\\', '/')
        self.ids: list[str] = []
        seen: Counter[str] = Counter()
        digest = hashlib.sha256()
        for index, info in enumerate(_infos(dataset)):
            path = str(info.get('img_path') or f'{index:06d}').replace('\\', '/')
            name = path.removeprefix(root.rstrip('/') + '/')
            # A file may hold several images of a dataset, as crops.
            self.ids.append(f'{name}#{seen[name]}' if seen[name] else name)
            seen[name] += 1
            digest.update(f'{self.ids[-1]} {info.get("gt_label")}\n'.encode())
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, shards: Sequence[Sequence[int]], num_workers: int) -> DataLoader:
        """Loads shards one after the other, as lists of the pipeline's results."""
        return DataLoader(
            self.dataset,
            batch_sampler=[list(shard) for shard in shards],  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=_as_list,
        )


def _as_list(batch: list[Any]) -> list[Any]:
    return batch


def as_batch(
    items: Sequence[dict], device: torch.device, size: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """Stacks what a pipeline yields.

    Args:
        items: one dict per image, with ``inputs`` in pixel units of 0-255 and a
            ``data_samples`` that has a ``gt_label``.
        device: where the batch goes.
        size: shape (C, H, W) that every image must have; the first one's by default.

    Returns:
        Images (N, C, H, W) in [0, 1] and labels (N,).

    Raises:
        ConfigError: for images that differ in size or exceed the range, or without a
            single label.
    """
    images, labels = [], []
    for item in items:
        image, sample = item['inputs'], item['data_samples']
        name = sample.get('img_path', None) or 'an image'
        size = tuple(image.shape) if size is None else size
        if tuple(image.shape) != size:
            raise ConfigError(
                f'{name} has the shape {tuple(image.shape)} and another one {size}, '
                'but AutoAttack needs one size: add ResizeEdge and CenterCrop to the '
                'test pipeline.'
            )
        label = sample.get('gt_label', None)
        if label is None or label.numel() != 1:
            raise ConfigError(
                f'{name} has {"no label" if label is None else "several labels"}: '
                'AutoAttack needs one label per image.'
            )
        images.append(image.to(device, torch.float32))
        labels.append(int(label))
    batch = torch.stack(images)
    low, high = float(batch.min()), float(batch.max())
    if not (low >= 0 and high <= 255):
        raise ConfigError(
            f'pixels reach from {low:.3g} to {high:.3g} and not from '
            '0 to 255: leave the normalisation to the data preprocessor.'
        )
    return batch / 255, torch.tensor(labels, device=device)


def at_resolution(loader: DataLoader | dict, side: int) -> tuple[dict, str]:
    """Changes a loader config's pipeline to images of ``side`` x ``side``.

    With a crop, the shorter side is resized to floor(side / 0.875) first; without
    one, images are resized to the square itself.

    Args:
        loader: config of the data loader.
        side: in pixels.

    Returns:
        Another config, and a sentence that says what was changed.

    Raises:
        ConfigError: if the pipeline is not of that kind.
    """
    side = positive_int(side, 'resolution')
    if not isinstance(loader, dict) or not isinstance(loader['dataset'], dict):
        raise ConfigError('resolutions need the dataloader as a config, not built.')
    loader = deepcopy(loader)
    notes = {
        _resize_pipeline(dataset.get('pipeline') or [], side)
        for dataset in innermost(loader['dataset'])
    }
    return loader, f'{side}: ' + '; '.join(sorted(notes))


def _resize_pipeline(pipeline: list[dict], side: int) -> str:
    kinds = [str(step['type']).split('.')[-1] for step in pipeline]
    pairs = zip(kinds, pipeline, strict=True)
    steps = {kind: step for kind, step in pairs if kind not in _LOADING}
    found = [kind for kind in kinds if kind not in _LOADING]
    if not found and kinds:
        pipeline.insert(len(pipeline) - 1, {'type': 'Resize', 'scale': (side, side)})
        return f'resize {side} x {side} (config: none)'
    before = {
        kind: step.get('scale', step.get('crop_size')) for kind, step in steps.items()
    }
    larger = math.floor(side / CROP_RATIO)
    if found == ['ResizeEdge', 'CenterCrop']:
        if steps['ResizeEdge'].get('edge', 'short') == 'short':
            steps['ResizeEdge']['scale'] = larger
            steps['CenterCrop']['crop_size'] = side
            return (
                f'shorter side {larger}, crop {side} (config: shorter side '
                f'{before["ResizeEdge"]}, crop {before["CenterCrop"]})'
            )
    elif found in (['Resize', 'CenterCrop'], ['Resize']):
        resize, cropped = steps['Resize'], 'CenterCrop' in steps
        scale: Any = before['Resize']
        square = isinstance(scale, int) or (
            len(scale or ()) == 2 and scale[0] == scale[1]
        )
        if square and resize.get('keep_ratio') is not True:
            size = larger if cropped else side
            resize['scale'] = (size, size)
            if not cropped:
                return f'resize {side} x {side} (config: {scale})'
            steps['CenterCrop']['crop_size'] = side
            return (
                f'resize {size} x {size}, crop {side} (config: resize {scale}, crop '
                f'{before["CenterCrop"]})'
            )
    raise ConfigError(
        f'the test pipeline ({", ".join(kinds) or "empty"}) cannot be brought to other '
        'resolutions: that takes ResizeEdge (short edge) and CenterCrop, or Resize '
        'to a square, and no other change of the image.'
    )
