"""The replaying loader and iterator: lengths, order, resuming, hooks that reach in."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from mmdet.engine.hooks import PipelineSwitchHook
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmrobust.engine.replay import ReplayDataLoader, ReplayIterator
from torch.utils.data import DataLoader, Dataset

NO_VALIDATION = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)


class Numbers(Dataset):
    """A dataset whose items are their own indices, through a switchable pipeline."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pipeline: Callable[[int], int] = int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return self.pipeline(index)


def numbers(size: int = 5, batch_size: int = 2, **kwargs: Any) -> DataLoader:
    return DataLoader(Numbers(size), batch_size=batch_size, **kwargs)


def values(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize('times', [1, 2, 4])
def test_each_batch_comes_times_times_in_a_row(times: int) -> None:
    loader = numbers()
    plain = values(loader)
    replayed = ReplayDataLoader(loader, times)
    # 3 batches, the last one smaller: lengths and order follow the loader's.
    assert plain == [[0, 1], [2, 3], [4]]
    expected = [batch for batch in plain for _ in range(times)]
    assert values(replayed) == expected
    assert len(replayed) == len(expected) == 3 * times
    # A second pass starts anew, and the original loader is as it was.
    assert values(replayed) == expected
    assert len(loader) == 3
    assert values(loader) == plain


def test_a_batch_is_the_same_object_in_all_its_replays() -> None:
    """Data are loaded and augmented once per batch, not once per replay."""
    seen = list(ReplayDataLoader(numbers(), 3))
    for first in range(0, 9, 3):
        assert seen[first] is seen[first + 1] is seen[first + 2]
    assert seen[0] is not seen[3]


def test_drop_last_and_the_sampler_of_the_loader_stay() -> None:
    dataset = Numbers(7)
    sampler = DefaultSampler(dataset, shuffle=True, seed=3)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, drop_last=True)
    replayed = ReplayDataLoader(loader, 2)
    assert len(replayed) == 6
    # DistSamplerSeedHook reaches the sampler through the loader.
    assert replayed.sampler is sampler
    assert replayed.batch_size == 2
    orders = []
    for epoch in range(2):
        replayed.sampler.set_epoch(epoch)
        plain = values(loader)
        orders.append(plain)
        assert values(replayed) == [b for b in plain for _ in range(2)]
    assert orders[0] != orders[1]


def test_workers_that_persist() -> None:
    """One worker process serves both passes, and its batches are replayed."""
    replayed = ReplayDataLoader(numbers(num_workers=1, persistent_workers=True), 2)
    expected = [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]
    assert values(replayed) == expected
    workers = replayed._iterator._workers
    assert values(replayed) == expected
    assert replayed._iterator._workers[0] is workers[0]
    assert workers[0].is_alive()
    replayed._iterator._shutdown_workers()


def test_pipeline_switch_hook_restarts_persistent_workers() -> None:
    """mmdet's hook assigns private attributes of the loader that the runner shows.

    A proxy around the loader would take the assignments and keep the old workers,
    with the old pipeline: augmentation would silently never be switched off.
    """
    replayed = ReplayDataLoader(numbers(num_workers=1, persistent_workers=True), 2)

    class FakeRunner:
        epoch = 0
        train_dataloader = replayed

        logger = logging.getLogger('silent')

    hook = PipelineSwitchHook(switch_epoch=1, switch_pipeline=[negative])
    hook.before_train_epoch(FakeRunner)
    assert values(replayed)[0] == [0, 1]
    FakeRunner.epoch = 1
    hook.before_train_epoch(FakeRunner)
    assert replayed._iterator is None
    assert values(replayed) == [[0, -1], [0, -1], [-2, -3], [-2, -3], [-4], [-4]]
    FakeRunner.epoch = 2
    hook.before_train_epoch(FakeRunner)
    assert replayed._DataLoader__initialized
    assert values(replayed)[2] == [-2, -3]
    replayed._iterator._shutdown_workers()


def negative(value: int) -> int:
    """The pipeline after the switch; a worker process has to find it by name."""
    return -value


def test_pipeline_switch_hook_in_a_runner(build_runner: Callable[..., Runner]) -> None:
    """In a real training: the batches of the second pass come from the new pipeline."""
    switched = tiny.pipeline(test=False, scale=(64, 48))
    runner = build_runner(
        train_cfg=dict(
            type='mmrobust.AdvEpochBasedTrainLoop',
            max_epochs=2,
            val_interval=100,
            adversary=dict(type='mmrobust.FreeAdversary', eps=4, replays=2),
        ),
        custom_hooks=[
            dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=switched)
        ],
        **NO_VALIDATION,
    )
    widest = []

    def train_step(model: Any, wrapper: Any, data_batch: dict, iteration: int) -> dict:
        widest.append(max(max(image.shape[1:]) for image in data_batch['inputs']))
        return {'loss': torch.zeros(())}

    runner.train_loop.adversary.train_step = train_step
    runner.train()
    assert len(widest) == 12  # 6 images, batches of 2, 2 replays, 2 passes
    assert min(widest[:6]) > 64
    assert max(widest[6:]) == 64


class OldIterator:
    """What mmengine 0.10.7 hands to an iteration-based loop: no skip_iter."""

    def __init__(self) -> None:
        self.numbers = itertools.count()

    def __next__(self) -> int:
        return next(self.numbers)


class NewIterator(OldIterator):
    """What newer forks hand over: whole batches are skipped without being loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped: list[int] = []

    def skip_iter(self, num_iters: int) -> None:
        self.skipped.append(num_iters)
        for _ in range(num_iters):
            next(self.numbers)


@pytest.mark.parametrize('inner', [OldIterator, NewIterator])
def test_the_endless_iterator_replays(inner: type[OldIterator]) -> None:
    iterator = ReplayIterator(inner(), 3)
    assert iter(iterator) is iterator
    assert [next(iterator) for _ in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize('times', [1, 3])
@pytest.mark.parametrize('skipped', [0, 1, 2, 3, 4, 6, 7, 11])
def test_skipping_is_calling_next(skipped: int, times: int) -> None:
    """At a batch boundary (0, 3, 6) and in the middle of a batch's replays."""
    called = ReplayIterator(NewIterator(), times)
    for _ in range(skipped):
        next(called)
    inner = NewIterator()
    jumped = ReplayIterator(inner, times)
    jumped.skip_iter(skipped)
    # Batches, not updates, are skipped below.
    assert inner.skipped == [skipped // times]
    assert [next(jumped) for _ in range(9)] == [next(called) for _ in range(9)]


def resume(iterator: ReplayIterator, updates: int) -> None:
    """How IterBasedTrainLoop.run advances: by skip_iter where its iterator has it."""
    if hasattr(_InfiniteDataloaderIterator, 'skip_iter'):
        iterator.skip_iter(updates)
        return
    for _ in range(updates):
        next(iterator)


@pytest.mark.parametrize('updates', [0, 4, 6, 7])
def test_resuming_on_the_installed_mmengine(updates: int) -> None:
    """The same on the iterator and the shuffling sampler that training really uses."""

    def iterator() -> ReplayIterator:
        dataset = Numbers(8)
        sampler = InfiniteSampler(dataset, shuffle=True, seed=1)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler)
        return ReplayIterator(_InfiniteDataloaderIterator(loader), 3)

    uninterrupted = iterator()
    expected = [next(uninterrupted) for _ in range(updates + 7)][updates:]
    resumed = iterator()
    resume(resumed, updates)
    assert torch.equal(
        torch.stack([next(resumed) for _ in range(7)]), torch.stack(expected)
    )


def test_mmengines_loop_skips_through_the_wrapper(
    build_runner: Callable[..., Runner],
) -> None:
    """The loop itself takes the way that `resume` above assumes."""
    loader = build_runner().cfg.train_dataloader.to_dict()
    loader['sampler'] = dict(type='InfiniteSampler', shuffle=True)
    seen: list[list[list[int]]] = []
    for start in (0, 4):
        runner = build_runner(
            train_dataloader=loader,
            train_cfg=dict(
                type='mmrobust.AdvIterBasedTrainLoop',
                max_iters=7,
                val_interval=1000,
                adversary=dict(type='mmrobust.FreeAdversary', eps=4, replays=3),
            ),
            **NO_VALIDATION,
        )
        seen.append([])
        # Nothing is learned: the question is which batches come.
        runner.train_loop.adversary.train_step = _note_ids(seen[-1])
        runner.train_loop._iter = start
        runner.train()
    assert len(seen[0]) == 7
    assert seen[0][0] == seen[0][1] == seen[0][2] != seen[0][3]
    assert seen[0][4:] == seen[1]


def _note_ids(seen: list[list[int]]) -> Callable:
    def train_step(model: Any, wrapper: Any, data_batch: dict, iteration: int) -> dict:
        seen.append([sample.img_id for sample in data_batch['data_samples']])
        return {'loss': torch.zeros(())}

    return train_step
