"""Data loaders that hand out every batch several times, for FreeAT.

Each replay counts as one iteration, and the loader says so: schedulers, ETA, logs,
checkpoints and resuming all go by its length and then stay right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class ReplayDataLoader(DataLoader):
    """A built data loader whose batches come ``times`` times in a row.

    It shares the loader's state rather than wrapping it, because hooks such as mmdet's
    PipelineSwitchHook assign to private attributes of ``runner.train_dataloader``.

    Args:
        loader: the loader to replay.
        times: how often each batch comes, at least 1.
    """

    times: int

    def __init__(self, loader: DataLoader, times: int) -> None:
        # No super().__init__(): that would build a second loader.
        self.__dict__.update(loader.__dict__)
        self.__dict__['times'] = times

    def __len__(self) -> int:
        return self.times * super().__len__()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            for _ in range(self.times):
                yield batch


class ReplayIterator:
    """An endless iterator whose batches come ``times`` times in a row.

    Args:
        inner: mmengine's endless iterator over the data loader.
        times: how often each batch comes, at least 1.
    """

    def __init__(self, inner: Iterator[Any], times: int) -> None:
        self._inner = inner
        self._times = times
        self._left = 0
        self._batch: Any = None

    def __iter__(self) -> ReplayIterator:
        return self

    def __next__(self) -> Any:
        if self._left == 0:
            self._batch = next(self._inner)
            self._left = self._times
        self._left -= 1
        return self._batch

    def skip_iter(self, num_iters: int) -> None:
        """Advances by ``num_iters`` iterations when resuming (newer mmengine forks)."""
        batches, replays = divmod(num_iters, self._times)
        self._inner.skip_iter(batches)  # type: ignore[attr-defined]
        for _ in range(replays):
            next(self)
