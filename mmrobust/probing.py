"""Runs an image's own pipeline on another picture, which shows what the pipeline does.

What a pipeline made of a picture is measured this way and not read off the names of its
transforms, since those belong to other people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from typing import Any

import mmcv
import numpy as np

from .corruptions import CorruptPicture
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


@contextmanager
def decoded_once() -> Iterator[None]:
    """Has a file decoded once, however many pipelines load it inside the context.

    Decoding takes longer than much of what pipelines do to a picture. Files of the same
    content make the same picture; everybody gets a copy of his own.
    """
    decode = mmcv.imfrombytes  # transforms of all projects ask mmcv for it
    known: dict[Any, Any] = {}

    def remembered(content: Any, *args: Any, **options: Any) -> Any:
        key = bytes(content), args, tuple(options.items())
        if key not in known:
            known[key] = decode(content, *args, **options)
        return copy(known[key])

    mmcv.imfrombytes = remembered
    try:
        yield
    finally:
        mmcv.imfrombytes = decode


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
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        # Anew for every item, as hooks change settings of a dataset during a training.
        twin = copy(dataset)
        own = vars(twin)
        if own.get('pipeline') is not None:
            own['pipeline'] = self._pipeline(own['pipeline'])
        if 'dataset' in own:
            own['dataset'] = self._twin(own['dataset'])
        elif 'datasets' in own:
            own['datasets'] = [self._twin(each) for each in own['datasets']]
        elif hasattr(dataset, 'get_data_info'):
            own['get_data_info'] = partial(self._info, twin)
        return twin

    def _pipeline(self, pipeline: Any) -> Any:
        transforms = list(getattr(pipeline, 'transforms', pipeline))
        known, twin = self._copies.get(id(pipeline), (None, None))
        if known is None or list(map(id, known)) != list(map(id, transforms)):
            twin = deepcopy(pipeline)
            # Where pixels go is asked, and not what a corruption makes of them.
            if hasattr(twin, 'transforms'):
                steps = twin.transforms
                twin.transforms = [
                    each for each in steps if not isinstance(each, CorruptPicture)
                ]
            self._copies[id(pipeline)] = transforms, twin
        return twin

    def _info(self, twin: Any, index: int) -> _Results:
        # Not the dataset's: transforms that load pictures may get it along with them.
        return _Results(type(twin).get_data_info(twin, index), self._exchange)

    def _exchange(self, picture: Any) -> Any:
        if not isinstance(picture, np.ndarray):
            return picture
        self._loaded += 1
        return self._picture(picture)


class _Results(dict):
    """What goes through a pipeline; the first picture that is put in is exchanged."""

    def __init__(self, content: dict, exchange: Callable[[Any], Any]) -> None:
        super().__init__()
        self._exchange = exchange
        self.update(content)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key == 'img' and 'img' not in self:
            value = self._exchange(value)
        super().__setitem__(key, value)

    def update(self, *others: Any, **items: Any) -> None:
        for key, value in dict(*others, **items).items():
            self[key] = value

    def copy(self) -> dict:
        return self._with(dict(self))

    __copy__ = copy

    def __deepcopy__(self, memo: dict) -> dict:
        return self._with(deepcopy(dict(self), memo))

    def _with(self, content: dict) -> dict:
        # A picture is exchanged once, and not again when it has been padded.
        return content if 'img' in content else _Results(content, self._exchange)
