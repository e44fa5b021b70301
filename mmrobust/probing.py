"""Runs an image's own pipeline on another picture, which shows what the pipeline does.

What a pipeline made of a picture is measured this way and not read off the names of its
transforms, since those belong to other people.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any

import numpy as np

from .errors import ConfigError
from .utils.seeding import undrawn

# Of the picture that a pipeline has loaded, (H, W, C), another one of its shape and
# type. Where a sample is made of several pictures, each of them is replaced.
Picture = Callable[[np.ndarray], np.ndarray]


def probe(dataset: Any, index: int, picture: Picture) -> Any:
    """Returns what ``dataset[index]`` would be, were its picture another one.

    The random draws are those that ``dataset[index]`` makes if it is asked for next,
    and neither they nor the dataset are changed. For many items of a dataset whose
    transforms remember pictures, use one :class:`Probe`.

    Args:
        dataset: a dataset of mmengine with a ``pipeline``, or a wrapper of such.
        index: the place of the item.
        picture: makes the other picture of the one that the pipeline has loaded.

    Returns:
        The packed sample: ``inputs`` and ``data_samples``.

    Raises:
        ConfigError: if nothing in the dataset loads a picture.
    """
    return Probe(dataset, picture)[index]


class Probe:
    """The twin of a dataset in which all pictures are others.

    It shares the annotations with the dataset and has its own copy of the pipelines.
    Asked for each item right before the dataset is, it makes the same random draws, and
    what its transforms remember (the cache of a mosaic) are the same items with the
    other pictures.

    Args:
        dataset: see :func:`probe`. Its pipelines may be exchanged at any time.
        picture: see :func:`probe`.
    """

    def __init__(self, dataset: Any, picture: Picture) -> None:
        self._dataset = dataset
        self._picture = picture
        self._loaded = 0
        # Of each pipeline: the transforms that it had, and the copy.
        self._copies: dict[int, tuple[list[Any], Any]] = {}

    def __getitem__(self, index: int) -> Any:
        self._loaded = 0
        with undrawn():
            item = self._twin(self._dataset)[index]
        if not self._loaded:
            raise ConfigError(
                f'{type(self._dataset).__name__} has no pipeline that loads a picture.'
            )
        return item

    def _twin(self, dataset: Any) -> Any:
        # Anew for every item, as hooks change settings of a dataset during a training.
        twin = copy(dataset)
        own = vars(twin)
        for name in own:
            if name == 'dataset':
                own[name] = self._twin(own[name])
            elif name == 'datasets':
                own[name] = [self._twin(each) for each in own[name]]
            elif name == 'pipeline' and own[name] is not None:
                own[name] = self._pipeline(own[name])
        return twin

    def _pipeline(self, pipeline: Any) -> Any:
        transforms = list(getattr(pipeline, 'transforms', pipeline))
        known, twin = self._copies.get(id(pipeline), (None, None))
        if known is None or list(map(id, known)) != list(map(id, transforms)):
            twin = self._shown(deepcopy(pipeline))
            self._copies[id(pipeline)] = transforms, twin
        return twin

    def _shown(self, transform: Any) -> Any:
        """The transform, or list or composition of some, with pictures exchanged."""
        if isinstance(transform, (list, tuple)):
            return type(transform)(map(self._shown, transform))
        inner = getattr(transform, 'transforms', None)
        if callable(inner) or (isinstance(inner, (list, tuple)) and _all_run(inner)):
            transform.transforms = self._shown(inner)
            return transform
        return _Exchanging(transform, self._exchange)

    def _exchange(self, picture: np.ndarray) -> np.ndarray:
        self._loaded += 1
        return self._picture(picture)


def _all_run(transforms: Any) -> bool:
    """Returns whether these are transforms, maybe in lists, and not configs of some."""
    return all(
        _all_run(each) if isinstance(each, (list, tuple)) else callable(each)
        for each in transforms
    )


class _Exchanging:
    """A transform, with another picture in place of one that it loads."""

    def __init__(self, transform: Any, exchange: Picture) -> None:
        self.transform, self.exchange = transform, exchange

    def __call__(self, results: Any) -> Any:
        loads = isinstance(results, dict) and 'img' not in results
        results = self.transform(results)
        if loads and isinstance(results, dict) and 'img' in results:
            results['img'] = self.exchange(results['img'])
        return results

    def __getattr__(self, name: str) -> Any:
        if name == 'transform':  # while being copied or unpickled, before it is set
            raise AttributeError(name)
        return getattr(self.transform, name)
