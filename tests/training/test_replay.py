"""The replaying loader and iterator: lengths, order, resuming, hooks that reach in."""

import itertools
import logging
import pickle
import random

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.engine.hooks import PipelineSwitchHook
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmrobust.training.replay import ReplayDataLoader, ReplayIterator
from mmrobust.errors import ConfigError
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    """A dataset whose items are their own indices, through a switchable pipeline."""

    def __init__(self, size):
        self.size = size
        self.pipeline = int

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.pipeline(index)


def numbers(size=5, batch_size=2, **kwargs):
    return DataLoader(Numbers(size), batch_size=batch_size, **kwargs)


def values(loader):
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize('times', [1, 2, 4])
def test_each_batch_comes_times_times_in_a_row(times):
    loader = numbers()
    plain = values(loader)
    replayed = ReplayDataLoader(loader, times)
    # 3 batches, the last one smaller: lengths and order follow the loader's.
    assert plain == [[0, 1], [2, 3], [4]]
    expected = [batch for batch in plain for _ in range(times)]
    assert values(replayed) == expected
    assert len(replayed) == len(expected) == 3 * times
    # Data are loaded and augmented once per batch, not once per replay.
    assert len({id(batch) for batch in list(replayed)}) == 3
    # A second pass starts anew, and the original loader is as it was.
    assert values(replayed) == expected
    assert len(loader) == 3
    assert values(loader) == plain


def test_drop_last_and_the_sampler_of_the_loader_stay():
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


def test_workers_that_persist():
    """One worker process serves both passes, and its batches are replayed."""
    replayed = ReplayDataLoader(numbers(num_workers=1, persistent_workers=True), 2)
    expected = [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]
    assert values(replayed) == expected
    workers = replayed._iterator._workers
    assert values(replayed) == expected
    assert replayed._iterator._workers[0] is workers[0]
    assert workers[0].is_alive()
    replayed._iterator._shutdown_workers()


def test_pipeline_switch_hook_restarts_persistent_workers():
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


def negative(value):
    """The pipeline after the switch; a worker process has to find it by name."""
    return -value


def endless(times, size=8, infinite=True):
    dataset = Numbers(size)
    kind = InfiniteSampler if infinite else DefaultSampler
    loader = DataLoader(
        dataset, batch_size=2, sampler=kind(dataset, shuffle=True, seed=1)
    )
    return ReplayIterator(ReplayDataLoader(loader, 1), times)


def test_the_endless_iterator_replays():
    iterator = endless(3)
    assert iter(iterator) is iterator
    seen = [next(iterator) for _ in range(8)]
    assert seen[0] is seen[1] is seen[2] is not seen[3]
    assert seen[3] is seen[4] is seen[5] is not seen[6]


def test_a_finite_sampler_begins_anew():
    """Each pass has all images, in the order that its number gives."""
    iterator = endless(1, infinite=False)
    passes = [[next(iterator).tolist() for _ in range(4)] for _ in range(3)]
    for batches in passes:
        assert sorted(itertools.chain(*batches)) == list(range(8))
    assert passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize('infinite', [True, False])
@pytest.mark.parametrize('times', [1, 3])
@pytest.mark.parametrize('skipped', [0, 1, 2, 3, 4, 6, 7, 12, 25])
def test_skipping_is_calling_next_without_loading(skipped, times, infinite):
    """At a batch boundary, in the middle of a batch's replays, and in a later pass."""
    called, jumped = endless(times, 8, infinite), endless(times, 8, infinite)
    for _ in range(skipped):
        next(called)
    loaded = []
    jumped._loader.dataset.pipeline = lambda index: loaded.append(index) or index
    jumped.skip_iter(skipped)
    # At most the batch whose replays are not all used.
    assert len(loaded) == (2 if skipped % times else 0)
    assert [next(jumped).tolist() for _ in range(9)] == [
        next(called).tolist() for _ in range(9)
    ]


@pytest.mark.parametrize('skip', [False, True])
def test_passes_without_a_batch_end_in_a_sentence(skip):
    """They would be begun anew for ever."""
    loader = DataLoader(Numbers(3), batch_size=4, drop_last=True)
    iterator = ReplayIterator(ReplayDataLoader(loader, 1), 2)
    with pytest.raises(ConfigError, match='has no batch: make batch_size smaller'):
        iterator.skip_iter(4) if skip else next(iterator)


class Draws(Dataset):
    """Items are what each of the global generators gives."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index, float(torch.rand(())), np.random.rand(), random.random()


def draws(passes, start=(0, 0), **kwargs):
    """All items of some passes, of which the first one begins somewhere."""
    dataset = Draws()
    sampler = DefaultSampler(dataset, shuffle=True, seed=1)
    kwargs = {'batch_size': 2, 'collate_fn': list, **kwargs}
    loader = ReplayDataLoader(DataLoader(dataset, sampler=sampler, **kwargs), 2, 5)
    found = []
    for number in range(start[0], passes):
        sampler.set_epoch(number)
        loader.start(number, start[1] if number == start[0] else 0)
        found.append(list(loader))
    return found


WORKERS = [
    dict(num_workers=1),
    dict(num_workers=2, persistent_workers=True),
]


@pytest.mark.parametrize('workers', WORKERS)
def test_draws_do_not_depend_on_workers(workers):
    """mmengine seeds workers once, and each goes on from what it has done before."""
    expected = draws(2)
    assert draws(2, **workers) == expected
    values = {
        value
        for batch in itertools.chain(*(batches[::2] for batches in expected))
        for item in batch
        for value in item[1:]
    }
    assert len(values) == 2 * 7 * 3  # all different, from pass to pass, too


def test_workers_may_be_spawned():
    """They get dataset and indices pickled, where forked ones share them."""
    loader = ReplayDataLoader(DataLoader(Draws(), batch_size=2), 1)
    (dataset, indices) = pickle.loads(
        pickle.dumps((loader.dataset, next(iter(loader._index_sampler))))
    )
    assert dataset.__getitems__(indices) == loader.dataset.__getitems__(indices)
    assert dataset.__getitems__([0, 1]) != loader.dataset.__getitems__([0, 1])


@pytest.mark.parametrize('updates', [0, 1, 2, 5, 8])
@pytest.mark.parametrize('workers', [dict(), WORKERS[1]])
def test_a_pass_goes_on_anywhere(updates, workers):
    expected = draws(3)
    found = draws(3, start=(1, updates), **workers)
    assert found == [expected[1][updates:], expected[2]]


@pytest.mark.parametrize('workers', [dict(), *WORKERS])
@pytest.mark.parametrize('dataset', [Numbers(7), Draws()])
def test_generators_are_left_as_by_a_plain_loader(workers, dataset):
    """A model draws what it draws in stock training, whatever augmentation draws."""
    found = []
    for kind in (DataLoader, ReplayDataLoader):
        loader = DataLoader(Numbers(7), batch_size=2, **workers)
        if kind is ReplayDataLoader:
            loader = DataLoader(dataset, batch_size=2, **workers)
            loader = ReplayDataLoader(loader, 2)
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        for _ in range(3):
            for _ in loader:
                pass
            found.append((float(torch.rand(())), np.random.rand(), random.random()))
    assert found[:3] == found[3:]


def test_two_processes_draw_what_one_draws(monkeypatch):
    whole = {item[0]: item for batch in draws(1)[0] for item in batch}
    for rank in range(2):
        for module in ('mmengine.dataset.sampler', 'mmrobust.training.replay'):
            monkeypatch.setattr(f'{module}.get_dist_info', lambda rank=rank: (rank, 2))
        # Seven images and a repeated one, whose place is another.
        items = [item for batch in draws(1, batch_size=1)[0][::2] for item in batch]
        assert len(items) == 4
        for item in items[:3]:
            assert item == whole[item[0]]


def test_aspect_ratio_batches_go_on():
    """Batches that wait for their group are part of the place."""

    class Shapes(Draws):
        def get_data_info(self, index):
            return dict(width=1 + index % 3 % 2, height=1)

    def batches(used):
        dataset = Shapes()
        sampler = DefaultSampler(dataset, shuffle=True, seed=1)
        loader = DataLoader(
            dataset,
            batch_sampler=AspectRatioBatchSampler(sampler, 2),
            collate_fn=list,
        )
        replayed = ReplayDataLoader(loader, 1)
        replayed.start(0, used)
        return list(replayed)

    expected = batches(0)
    assert len(expected) == 4
    for used in (1, 2, 3, 4):
        assert batches(used) == expected[used:]
