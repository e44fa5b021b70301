"""A run that goes on from a checkpoint ends as if it had not been interrupted.

Bit for bit, where everything draws: the augmentation, in worker processes and without,
the samplers of Faster R-CNN, and what is carried from update to update.
"""

import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmrobust.training.resume import newest_checkpoint
from mmrobust.errors import ConfigError
from mmrobust.utils.seeding import generator_states, set_generator_states
from updates import checkpoints as saving, epochs, free, iters, pgd


FREE = free(eps=4, replays=2)
RUN = dict(FREE, carry='run')
PGD = pgd(eps=4, num_steps=1)
NONE = dict(type='mmrobust.NoAdversary')


def random_loader(root, **kwargs):
    """Flips, scales and colours are drawn from all three global generators."""
    loader = tiny.loader(root, test=False, batch_size=2)
    load, annotations, _, pack = loader['dataset']['pipeline']
    loader['dataset']['pipeline'] = [
        load,
        annotations,
        dict(
            type='RandomChoiceResize',
            scales=[(64, 48), (80, 60), (48, 36)],
            keep_ratio=True,
        ),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        pack,
    ]
    return {**loader, **kwargs}


@METRICS.register_module(force=True)
class Confidence(BaseMetric):
    """A metric that differs from pass to pass."""

    def process(self, data_batch, data_samples):
        # What validation draws must not change the training.
        torch.rand(int(torch.randint(1, 9, ())))
        self.results += [
            float(s['pred_instances']['scores'].sum()) for s in data_samples
        ]

    def compute_metrics(self, results):
        assert any(results)
        return {'score': sum(results)}


@pytest.fixture
def build(build, coco):
    """Builds runners with a model and a pipeline that draw."""

    def make(model=None, **overrides):
        overrides.setdefault('train_dataloader', random_loader(coco))
        return build(model or tiny.faster_rcnn(), **overrides)

    return make


def outcome(runner):
    """Weights, statistics, the optimizer's and the generators' states."""
    found = {k: v.clone() for k, v in runner.model.state_dict().items()}
    for index, state in runner.optim_wrapper.state_dict()['state'].items():
        for key, value in state.items():
            found[f'optimizer.{index}.{key}'] = torch.as_tensor(value).clone()
    for key, value in generator_states().items():
        if isinstance(value, torch.Tensor):
            found[f'generators.{key}'] = value
    return found


def assert_resumes(build, tmp_path, names, **settings):
    """A run equals the ones that go on from its checkpoints."""
    runner = build(**settings)
    runner.train()
    expected = outcome(runner)
    kept = tmp_path / 'kept'
    shutil.copytree(tmp_path / 'work', kept)
    for name in names:
        resumed = build(**settings, load_from=str(kept / name), resume=True)
        # What a new process has drawn until then is another thing.
        torch.rand(7)
        resumed.train()
        assert resumed.iter == runner.iter
        found = outcome(resumed)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)


CASES = {
    'epochs': (
        dict(train_cfg=epochs(3, FREE), default_hooks=saving()),
        dict(num_workers=2, persistent_workers=True),
        ['epoch_1.pth'],
    ),
    # In the middle of a batch's replays, and at the end of a pass.
    'epochs, carried, anywhere': (
        dict(train_cfg=epochs(2, RUN), default_hooks=saving(1, by_epoch=False)),
        dict(),
        ['iter_1.pth', 'iter_6.pth'],
    ),
    'epochs, anywhere, workers': (
        dict(train_cfg=epochs(2, NONE), default_hooks=saving(2, by_epoch=False)),
        dict(num_workers=1),
        ['iter_2.pth'],
    ),
    'iterations, carried': (
        dict(train_cfg=iters(9, RUN), default_hooks=saving(1, by_epoch=False)),
        dict(
            sampler=dict(type='InfiniteSampler', shuffle=True),
            num_workers=1,
            persistent_workers=True,
        ),
        ['iter_5.pth'],
    ),
    # After more than one pass.
    'iterations, PGD': (
        dict(train_cfg=iters(8, PGD), default_hooks=saving(1, by_epoch=False)),
        dict(batch_sampler=dict(type='AspectRatioBatchSampler')),
        ['iter_7.pth'],
    ),
    'iterations, reset': (
        dict(train_cfg=iters(9, FREE), default_hooks=saving(7, by_epoch=False)),
        dict(sampler=dict(type='InfiniteSampler', shuffle=True)),
        ['iter_7.pth'],
    ),
}


@pytest.mark.parametrize('name', list(CASES))
def test_training_resumes_exactly(build, coco, tmp_path, name):
    settings, data, names = CASES[name]
    assert_resumes(
        build,
        tmp_path,
        names,
        train_dataloader=random_loader(coco, **data),
        **settings,
    )


def test_the_run_draws(build, coco):
    """The tests above could not tell augmentation and samplers that draw nothing."""
    shapes, states = set(), []
    for seed in (0, 1):
        runner = build(train_cfg=epochs(1, NONE), randomness=dict(seed=0))
        loader = runner.train_loop.dataloader
        states.append(torch.get_rng_state())
        loader.start(seed)
        for batch in loader:
            shapes |= {(s.img_shape, s.flip) for s in batch['data_samples']}
    assert len(shapes) > 4


def test_ema_schedules_and_validation(build, coco, tmp_path):
    """A checkpoint before a validation, on which the learning rate depends."""
    hooks = saving(1, save_best='score', rule='greater')
    assert_resumes(
        build,
        tmp_path,
        ['epoch_1.pth'],
        model=tiny.faster_rcnn(),
        train_cfg=epochs(3, NONE),
        default_hooks=hooks,
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
            dict(type='ReduceOnPlateauLR', monitor='score', factor=0.1, patience=0),
        ],
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='Confidence'),
        val_dataloader=dict(
            tiny.loader(coco, test=True), num_workers=1, persistent_workers=True
        ),
    )


def test_validation_is_made_up(build, coco, tmp_path):
    """Where it had not begun before the kill, by iteration and at the very end."""
    settings = dict(
        train_cfg=iters(4, NONE, val_interval=2),
        default_hooks=saving(2, by_epoch=False),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='Confidence'),
        val_dataloader=tiny.loader(coco, test=True),
    )
    found = []
    for name in (None, 'iter_2.pth', 'iter_4.pth'):
        path = str(tmp_path / 'work' / str(name))
        resumed = dict(load_from=path, resume=True) if name else {}
        runner = build(**settings, **resumed)
        made = []
        runner.val_loop.run = lambda r=runner, made=made: made.append(r.iter)
        runner.train()
        found.append(made)
    assert found == [[2, 4], [2, 4], [4]]


def test_gradients_that_wait_and_sizes_of_batches(build, tmp_path):
    """Two batches per update of the weights; a checkpoint between the two.

    mmdet's multi-scale batches keep a size for some updates.
    """
    resize = dict(
        type='BatchSyncRandomResize',
        random_size_range=(32, 96),
        interval=3,
        size_divisor=16,
    )
    model = tiny.faster_rcnn()
    model['data_preprocessor'] = dict(
        model['data_preprocessor'], batch_augments=[resize]
    )
    wrapper = dict(
        type='OptimWrapper',
        accumulative_counts=2,
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
    )
    assert_resumes(
        build,
        tmp_path,
        ['iter_5.pth'],
        model=model,
        train_cfg=iters(8, PGD),
        default_hooks=saving(5, by_epoch=False),
        optim_wrapper=wrapper,
    )
    saved = torch.load(tmp_path / 'work' / 'iter_5.pth', weights_only=True)
    (own,) = saved['mmrobust_training']['ranks']
    assert own['gradients']
    assert own['sizes']


def test_a_pipeline_that_switches(build, coco, tmp_path):
    """mmdet's hook restarts workers that persist, once or at each start.

    There is no seed in the config; mmengine takes over the checkpoint's after it has
    built the data loader.
    """
    loader = random_loader(coco, num_workers=1, persistent_workers=True)
    switched = tiny.pipeline(test=False, scale=(64, 48))
    assert_resumes(
        build,
        tmp_path,
        ['epoch_2.pth'],
        train_cfg=epochs(3, NONE),
        train_dataloader=loader,
        default_hooks=saving(),
        randomness=dict(seed=None),
        custom_hooks=[
            dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=switched)
        ],
    )


def test_another_length_of_a_pass_is_refused(build, coco):
    """In the middle of it; what had been used could not be left out."""
    settings = dict(train_cfg=epochs(1, NONE), default_hooks=saving(1, by_epoch=False))
    runner = build(**settings)
    runner.train()
    saved = os.path.join(runner.work_dir, 'iter_2.pth')
    loader = random_loader(coco, batch_size=1)
    runner = build(**settings, train_dataloader=loader, load_from=saved, resume=True)
    with pytest.raises(ConfigError, match='a pass of 3 updates, and a pass has 6 now'):
        runner.train()


class Killed(BaseException):
    """The process is dead."""


def killed_while_saving(runner, number, monkeypatch):
    """The checkpoint of that number is half on disk when the process is killed."""
    stock, count = LocalBackend.put, 0

    def put(self, content, path):
        nonlocal count
        count += 1
        stock(self, content[: len(content) // 2] if count == number else content, path)
        if count == number:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, 'put', put)
        with pytest.raises(Killed):
            runner.train()


def test_a_kill_while_saving_loses_nothing(build, tmp_path, monkeypatch):
    """Nor where mmengine removes the only checkpoint before it writes the next."""
    settings = dict(train_cfg=epochs(3, NONE), default_hooks=saving(max_keep_ckpts=1))
    runner = build(**settings)
    runner.train()
    expected, work = outcome(runner), tmp_path / 'work'
    assert [path.name for path in work.glob('*.pth')] == ['epoch_3.pth']
    shutil.rmtree(work)
    killed_while_saving(build(**settings), 3, monkeypatch)
    assert newest_checkpoint(str(work))[0] == str(work / 'epoch_2.pth')
    assert not (work / 'epoch_3.pth').exists()
    (work / '.epoch_3.pth.abcdefgh.pth').touch()  # a part that a real kill leaves
    resumed = build(**settings, resume=True)
    resumed.train()
    for key, value in outcome(resumed).items():
        assert torch.equal(value, expected[key]), key
    assert [path.name for path in work.glob('*.pth')] == ['epoch_3.pth']
    assert not list(work.glob('.*.pth'))


def checkpoint(path, content, age):
    torch.save(content, path)
    os.utime(path, (1e9 - age, 1e9 - age))


def test_the_newest_whole_checkpoint(tmp_path):
    """Files of stock runs may be cut off, and so may the note of the last one."""
    folder = str(tmp_path)
    assert newest_checkpoint(folder) == (None, {})
    full = dict(meta=dict(seed=3), optimizer={}, state_dict={})
    checkpoint(tmp_path / 'iter_10.pth', full, age=3)
    checkpoint(tmp_path / 'iter_20.pth', full, age=2)
    checkpoint(tmp_path / 'best.pth', dict(meta={}), age=1)
    note = tmp_path / 'last_checkpoint'

    def found():
        return Path(newest_checkpoint(folder)[0]).name

    # Without a note, with an empty one, with one of a file that is gone.
    assert found() == 'iter_20.pth'
    note.write_text('')
    assert found() == 'iter_20.pth'
    note.write_text(str(tmp_path / 'iter_30.pth'))
    assert found() == 'iter_20.pth'
    # It counts, whatever the clock says.
    note.write_text(str(tmp_path / 'iter_10.pth'))
    assert found() == 'iter_10.pth'
    for name in ('iter_10.pth', 'iter_20.pth'):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
        if name == 'iter_10.pth':
            assert found() == 'iter_20.pth'
    with pytest.raises(ConfigError, match=r'iter_20.*: give one with --resume FILE'):
        newest_checkpoint(folder)


def test_generators_continue_after_their_states():
    import random

    import numpy as np

    random.gauss(0, 1), np.random.randn()  # each keeps a second number
    states = generator_states()
    drawn = []
    for _ in range(2):
        drawn.append(
            (
                float(torch.rand(())),
                random.gauss(0, 1),
                random.random(),
                np.random.randn(),
                np.random.rand(),
                torch.initial_seed(),
            )
        )
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        set_generator_states(states)
    assert drawn[0] == drawn[1]


class Carried(Hook):
    """Notes whether there is a perturbation before each update."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.seen.append(bool(runner.train_loop.adversary._deltas))


def test_other_states_are_not_taken(build, tmp_path, monkeypatch):
    """Stock training, or two processes, were interrupted; one goes on, and says so."""
    settings = dict(train_cfg=iters(4, RUN), default_hooks=saving(2, by_epoch=False))
    build(**{**settings, 'train_cfg': iters(2, RUN)}).train()
    saved = tmp_path / 'work' / 'iter_2.pth'
    content = torch.load(saved, weights_only=True)
    own = content.pop('mmrobust_training')
    doubled = {**own, 'ranks': own['ranks'] * 2}
    said = []
    monkeypatch.setattr(
        'mmrobust.training.resume.print_log', lambda text, **kwargs: said.append(text)
    )
    for processes, state in ((0, {}), (2, {'mmrobust_training': doubled})):
        torch.save({**content, **state}, tmp_path / 'other.pth')
        other = str(tmp_path / 'other.pth')
        runner = build(**settings, load_from=other, resume=True)
        carried = Carried()
        runner.register_hook(carried)
        runner.train()
        assert carried.seen == [False, True]
        text = said.pop()
        assert f'perturbation of {processes} processes, and 1 resume' in text
    assert not said
