"""Data loaders that hand out every batch several times, and know where they are.

For FreeAT each replay counts as one iteration, and the loader says so: schedulers, ETA,
logs, checkpoints and resuming all go by its length and then stay right.

What augmentation draws for a sample depends on the sample's place in the training, not
on worker processes and what they have done before. So training can go on in the middle
of a pass without loading again what was used, and draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice, repeat
from typing import Any

import torch
from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..region import MeasuredDataset, collated
from ..utils.seeding import derive_seed, seeded


class PlacedBatch(list):
    """The indices of a batch, with a seed for each of its samples."""

    def __init__(self, indices: list, seeds: list[int]) -> None:
        super().__init__(indices)
        self.seeds = seeds


class PlacedBatches:
    """The batches of a batch sampler, each with the seeds of its samples.

    A seed depends on the run's seed, the pass over the data and the sample's number in
    it. Processes number their samples as mmengine's samplers deal them out, so two
    processes draw what one draws with the doubled batch.

    Args:
        batches: the batch sampler.
        seed: the run's seed.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        self._all = batches
        self._seed = seed
        self._rank, self._world_size = get_dist_info()
        self.start(0, 0)

    def start(self, number: int, used: int) -> int:
        """Lets the next iteration be that of a pass, after its first batches.

        Args:
            number: of the pass, from 0.
            used: batches that do not come again. They are sampled, not loaded.

        Returns:
            How many of them the pass did not have.
        """
        self.number = number
        self._samples = 0
        self._rest = iter(self._all) if used else None
        for batch in islice(self._rest or (), used):
            self._samples += len(batch)
            used -= 1
        return used

    @property
    def at_start(self) -> bool:
        """Returns whether the next iteration is a whole pass."""
        return self._rest is None

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[PlacedBatch]:
        # A generator: torch calls iter() twice and goes on with the second one.
        rest = iter(self._all) if self._rest is None else self._rest
        number, samples = self.number, self._samples
        self.start(number + 1, 0)
        for batch in rest:
            places = range(samples, samples + len(batch))
            yield PlacedBatch(batch, [self._seed_of(number, place) for place in places])
            samples += len(batch)

    def _seed_of(self, number: int, place: int) -> int:
        dealt = place * self._world_size + self._rank
        return derive_seed('pipeline', self._seed, number, dealt)


def _seeded_items(dataset: Any, indices: list) -> list:
    """The samples of a batch; torch's loaders ask ``dataset.__getitems__`` for them.

    Args:
        dataset: the loader's, or what measures the regions of its samples.
        indices: of the samples.
    """
    if not isinstance(indices, PlacedBatch):  # of another loader
        return [dataset[index] for index in indices]
    items = []
    for index, seed in zip(indices, indices.seeds, strict=True):
        with seeded(seed, torch.device('cpu')):
            items.append(dataset[index])
    return items


class ReplayDataLoader(DataLoader):
    """A built data loader whose batches come ``times`` times in a row.

    It shares the loader's state rather than wrapping it, because hooks such as mmdet's
    PipelineSwitchHook assign to private attributes of ``runner.train_dataloader``.

    Args:
        loader: the loader to replay.
        times: how often each batch comes, at least 1.
        seed: what augmentation draws depends on it.
        measured: measure which pixels of the images are attackable.
    """

    times: int

    def __init__(
        self, loader: DataLoader, times: int, seed: int = 0, measured: bool = False
    ) -> None:
        # No super().__init__(): that would build a second loader.
        self.__dict__.update(loader.__dict__)
        self.__dict__.update(
            times=times,
            generator=torch.Generator(),
            _places=PlacedBatches(loader.batch_sampler, seed),
            _done=0,
        )
        dataset: Any = loader.dataset
        items = MeasuredDataset(dataset) if measured else dataset
        dataset.__getitems__ = partial(_seeded_items, items)
        if measured:
            self.collate_fn = partial(collated, loader.collate_fn)

    @property
    def _index_sampler(self) -> PlacedBatches:
        return self.__dict__['_places']

    def start(self, number: int, updates: int = 0) -> int:
        """Lets the next iteration be that of a pass, after its first updates.

        Args:
            number: of the pass, from 0.
            updates: uses of batches that do not come again.

        Returns:
            How many of them the pass did not have.
        """
        batches, self._done = divmod(updates, self.times)
        left = self._index_sampler.start(number, batches)
        return left * self.times + (self._done if left else 0)

    def __len__(self) -> int:
        return self.times * super().__len__()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        places = self._index_sampler
        at_start = places.at_start and self._done == 0
        if at_start and (places.number == 0 or not self.persistent_workers):
            # A plain loader draws a seed here when it makes an iterator. Ours has a
            # generator of its own for it: a resumed run makes more iterators.
            torch.empty((), dtype=torch.int64).random_()
        return self._replays()

    def _replays(self) -> Iterator[Any]:
        done, self._done = self._done, 0
        for batch in super().__iter__():
            yield from repeat(batch, self.times - done)
            done = 0


class ReplayIterator:
    """An endless iterator whose batches come ``times`` times in a row.

    Args:
        loader: where the batches come from, each of them once.
        times: how often each batch comes, at least 1.
        batches: its first pass, if that has been begun.
    """

    def __init__(
        self,
        loader: ReplayDataLoader,
        times: int,
        batches: Iterator[Any] | None = None,
    ) -> None:
        self._loader = loader
        self._times = times
        self._pass = 0
        self._replays = self._endless(batches)

    def __iter__(self) -> ReplayIterator:
        return self

    def __next__(self) -> Any:
        return next(self._replays)

    def skip_iter(self, num_iters: int) -> None:
        """Goes on after ``num_iters`` iterations; only at the beginning.

        Samplers are asked for the indices of what was used, nothing of it is loaded.
        """
        batches, replays = divmod(num_iters, self._times)
        while missing := self._loader.start(self._pass, batches):
            if missing == batches:
                raise _no_batch()
            self._next_pass()
            batches = missing
        for _ in range(replays):
            next(self)

    def _endless(self, batches: Iterator[Any] | None) -> Iterator[Any]:
        empty = 0
        while empty < 2:  # the first pass may have been used up
            empty += 1
            for batch in iter(self._loader) if batches is None else batches:
                empty = 0
                yield from repeat(batch, self._times)
            batches = None
            self._next_pass()
        raise _no_batch()

    def _next_pass(self) -> None:
        self._pass += 1
        for owner in (self._loader, self._loader.batch_sampler):
            sampler: Any = getattr(owner, 'sampler', None)
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self._pass)
                return


def _no_batch() -> ConfigError:
    return ConfigError(
        'a pass over the training data has no batch: make batch_size smaller than the '
        'dataset, or leave out drop_last.'
    )
