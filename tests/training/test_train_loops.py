"""Adversarial training inside mmengine's Runner: counting, schedules, resuming."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import METRICS, MODELS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmrobust.training import FreeAdversary
from mmrobust.training.replay import ReplayDataLoader, ReplayIterator
from mmrobust.errors import ConfigError
from updates import checkpoints, epochs, free, iters, pgd


class Recorder(Hook):
    """Notes every update: counters, the learning rate it used, its images."""

    def __init__(self):
        self.index = []
        self.iter = []
        self.epoch = []
        self.lr = []
        self.images = []
        self.loss = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.index.append(batch_idx)
        self.iter.append(runner.iter)
        self.epoch.append(runner.epoch)
        self.lr.append(runner.optim_wrapper.get_lr()['lr'][0])
        self.images.append([s.img_id for s in data_batch['data_samples']])
        self.loss.append(float(outputs['loss']))


def train(runner):
    recorder = Recorder()
    # Before the scheduler's hook, which sets the next update's learning rate.
    runner.register_hook(recorder, priority='VERY_HIGH')
    runner.train()
    return recorder


def state_of(runner):
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def assert_same(first, second):
    """Parameters and buffers, BatchNorm statistics among them, bit by bit."""
    assert first.keys() == second.keys()
    assert any('running_mean' in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


SCHEDULE = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=9, milestones=[1], gamma=0.1),
]


CARRIED = dict(replays=1, carry='run')


@pytest.mark.parametrize(
    ('model', 'silent', 'attacking'),
    [
        (
            tiny.fcos,
            [free(eps=0, replays=1), pgd(eps=0, num_steps=1)],
            [free(eps=4, **CARRIED), pgd(eps=4, num_steps=1)],
        ),
        # Samplers draw from the global generator: FreeAT draws nothing itself (PGD's
        # inner losses do, and only there).
        (tiny.faster_rcnn, [free(eps=0, objective=['loss_cls'], **CARRIED)], []),
    ],
)
def test_no_perturbation_is_stock_training(build, model, silent, attacking):
    """Same weights, statistics, losses and learning rates after 6 updates, bit by bit.

    An attack makes a difference, or this could not tell an adversary never called.
    """
    results = []
    for adversary in (None, *silent, *attacking):
        runner = build(
            model(), train_cfg=epochs(2, adversary), param_scheduler=SCHEDULE
        )
        recorder = train(runner)
        results.append((state_of(runner), recorder))
    (stock, expected), *others = results
    assert len(expected.lr) == 6
    assert len(set(expected.lr)) > 2
    for ours, found in others[: len(silent)]:
        assert vars(found) == vars(expected)
        assert_same(ours, stock)
    attacked = others[len(silent) :]
    name = 'backbone.conv1.weight'
    assert not any(torch.equal(ours[name], stock[name]) for ours, _ in attacked)
    # FreeAT's first update sees the clean images, PGD's the attacked ones.
    for (_, found), clean in zip(attacked, (True, False), strict=False):
        assert (found.loss[0] == expected.loss[0]) == clean
        assert found.loss[0] >= expected.loss[0]


def test_no_perturbation_is_stock_training_by_iteration(build):
    results = []
    for adversary in (None, free(eps=0, replays=1)):
        runner = build(train_cfg=iters(5, adversary), param_scheduler=SCHEDULE[:1])
        recorder = train(runner)
        results.append((state_of(runner), recorder))
    (stock, expected), (ours, found) = results
    assert vars(found) == vars(expected)
    assert_same(ours, stock)


def test_replays_are_iterations(build):
    """Three replays of three batches are nine iterations, for everyone who counts."""
    runner = build(
        train_cfg=epochs(2, free(eps=4, replays=3)), param_scheduler=SCHEDULE
    )
    found = train(runner)
    assert isinstance(runner.train_dataloader, ReplayDataLoader)
    assert len(runner.train_dataloader) == 9
    assert runner.max_iters == runner.iter == 18
    assert runner.max_epochs == runner.epoch == 2
    assert found.iter == list(range(18))
    assert found.index == list(range(9)) * 2
    assert found.epoch == [0] * 9 + [1] * 9
    # The same batch three times in a row, and each image once per pass.
    for first in range(0, 18, 3):
        assert found.images[first] == found.images[first + 1] == found.images[first + 2]
    for start in (0, 9):
        seen = [i for images in found.images[start : start + 9 : 3] for i in images]
        assert sorted(seen) == [10, 11, 12, 13, 14, 15]
    # Warm-up over 5 updates (not batches), decay after one pass (not 3 batches).
    ramp = [0.1, 0.325, 0.55, 0.775, 1.0]
    factors = ramp + [1.0] * 4 + [0.1] * 9
    assert found.lr == pytest.approx([0.01 * factor for factor in factors], rel=1e-9)


def test_replays_are_iterations_by_iteration(build):
    runner = build(
        train_cfg=iters(7, free(eps=4, replays=3)), param_scheduler=SCHEDULE[:1]
    )
    found = train(runner)
    assert isinstance(runner.train_loop.dataloader_iterator, ReplayIterator)
    assert runner.max_iters == runner.iter == 7
    assert found.index == found.iter == list(range(7))
    assert found.images[0] == found.images[1] == found.images[2]
    assert found.images[3] == found.images[4] == found.images[5]
    assert len({tuple(images) for images in found.images}) == 3
    ramp = [0.1, 0.325, 0.55, 0.775, 1.0, 1.0, 1.0]
    assert found.lr == pytest.approx([0.01 * factor for factor in ramp], rel=1e-9)


@pytest.mark.parametrize(
    ('train_cfg', 'resets'),
    [
        (epochs(2, free(eps=4, replays=2)), [0, 6]),
        # By iteration a pass is the same number of updates: 3 batches, twice each.
        (iters(12, free(eps=4, replays=2)), [0, 6]),
    ],
)
def test_the_perturbation_starts_anew_in_each_pass(build, train_cfg, resets):
    runner = build(train_cfg=train_cfg)
    inputs = []
    runner.model.data_preprocessor.register_forward_pre_hook(
        lambda module, args: inputs.append([i.detach() for i in args[0]['inputs']])
    )
    batches = []

    class Clean(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            batches.append(data_batch['inputs'])

    runner.register_hook(Clean())
    runner.train()
    largest = [
        max(
            float((seen - clean.float()).abs().max())
            for seen, clean in zip(images, originals, strict=True)
        )
        for images, originals in zip(inputs, batches, strict=True)
    ]
    assert len(largest) == 12
    # Hooks see the loader's images; the model sees them attacked, all but the first.
    assert [i for i, size in enumerate(largest) if size == 0] == resets
    assert max(largest) == 4


def test_accumulation_with_pgd(build):
    """Two batches per update of the weights, as in stock training; eps 0 to compare."""
    wrapper = dict(
        type='OptimWrapper',
        accumulative_counts=2,
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
    )
    states, counts = [], []
    for adversary in (None, pgd(eps=0, num_steps=2), pgd(eps=4, num_steps=2)):
        runner = build(train_cfg=epochs(1, adversary), optim_wrapper=wrapper)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        steps = []
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_post_hook(lambda *args, steps=steps: steps.append(1))
        train(runner)
        states.append(state_of(runner))
        counts.append(len(steps))
    assert counts == [2, 2, 2]  # 3 batches: after the second and at the end
    assert_same(states[1], states[0])
    tracked = [value for n, value in states[2].items() if n.endswith('batches_tracked')]
    assert {int(count) for count in tracked} == {3}  # inner steps move no statistics
    name = 'backbone.conv1.weight'
    assert not torch.equal(states[2][name], states[0][name])


def test_the_saved_perturbation_counts_where_training_resumes(build, tmp_path):
    """Without it the run differs; load_from without resume takes the weights alone."""
    settings = dict(
        train_cfg=iters(5, free(eps=4, replays=3, carry='run')),
        default_hooks=checkpoints(4, by_epoch=False),
    )
    whole = train(build(**settings))
    saved = tmp_path / 'work' / 'iter_4.pth'
    checkpoint = torch.load(saved, weights_only=True)
    runner = build(**settings, load_from=str(saved))
    inputs = []
    runner.model.data_preprocessor.register_forward_pre_hook(
        lambda module, args: inputs.append(args[0]['inputs'][0].detach())
    )
    train(runner)
    # The first image is clean: whole numbers, as the loader's are.
    assert torch.equal(inputs[0], inputs[0].round())
    assert not torch.equal(inputs[1], inputs[0])
    (own,) = checkpoint['mmrobust_training']['ranks']
    assert own['adversary'].pop('deltas')
    torch.save(checkpoint, saved)
    rest = train(build(**settings, load_from=str(saved), resume=True))
    assert rest.loss[0] != whole.loss[4]


def test_checkpoints_are_plain_mmdet_checkpoints(build, tmp_path):
    """No prefix, no extra weight; what the adversary adds lies beside the weights."""
    adversary = free(eps='4/255', replays=2, carry='run', objective=['loss_cls'])
    runner = build(train_cfg=epochs(1, adversary))
    train(runner)
    saved = tmp_path / 'work' / 'epoch_1.pth'
    # weights_only: the file holds no class of ours that would have to be trusted.
    checkpoint = torch.load(saved, weights_only=True)
    plain = MODELS.build(tiny.fcos())
    assert list(checkpoint['state_dict']) == list(plain.state_dict())
    plain.load_state_dict(checkpoint['state_dict'], strict=True)
    assert checkpoint['meta']['adversary'] == dict(
        type='FreeAdversary',
        norm='linf',
        eps=4.0,
        objective='loss_cls',
        replays=2,
        warmup_iters=0,
        share=1.0,
        class_weighting=None,
        step_size=4.0,
        carry='run',
    )
    (own,) = checkpoint['mmrobust_training']['ranks']
    shapes = [tuple(d.shape) for d in own['adversary']['deltas']]
    assert len(shapes) == 2
    assert all(shape[0] == 3 for shape in shapes)
    # mmdet's own loading and inference.
    cfg = Config(dict(model=tiny.fcos(), test_dataloader=runner.cfg.test_dataloader))
    cfg.default_scope = 'mmdet'
    detector = init_detector(cfg, str(saved), device='cpu', palette='random')
    assert_same(detector.state_dict(), runner.model.state_dict())
    image = next((Path(runner.cfg.test_dataloader.dataset.data_root)).glob('images/*'))
    assert 'scores' in inference_detector(detector, str(image)).pred_instances


def test_a_best_checkpoint_carries_the_perturbation(build, coco, tmp_path):
    """save_best saves after validation, where the count of updates is another."""
    hooks = checkpoints()
    hooks['checkpoint'].update(save_best='coco/bbox_mAP', rule='greater')
    train(
        build(
            train_cfg=epochs(1, free(eps=4, replays=2, carry='run')),
            default_hooks=hooks,
            val_cfg=dict(type='ValLoop'),
            val_evaluator=dict(type='AlwaysOne'),
            val_dataloader=tiny.loader(coco, test=True),
        )
    )
    best = next((tmp_path / 'work').glob('best_*.pth'))
    last = tmp_path / 'work' / 'epoch_1.pth'
    states = [torch.load(path, weights_only=True) for path in (best, last)]
    ranks = [state['mmrobust_training']['ranks'] for state in states]
    deltas = [own['adversary']['deltas'] for (own,) in ranks]
    for ours, theirs in zip(*deltas, strict=True):
        assert torch.equal(ours, theirs)
    assert [state['meta']['iter'] for state in states] == [6, 6]


@METRICS.register_module(force=True)
class AlwaysOne(BaseMetric):
    """A metric that finds everything good."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {'coco/bbox_mAP': 1.0}


ACCUMULATING = dict(
    type='OptimWrapper', accumulative_counts=2, optimizer=dict(type='SGD', lr=0.01)
)
# They would be no adversarial training, without any sign.
REFUSED = [
    (
        loop(1, free(eps=4, replays=2)),
        dict(optim_wrapper=ACCUMULATING),
        'accumulative_counts=2 would accumulate one batch with itself',
    )
    for loop in (epochs, iters)
] + [
    (
        epochs(1, free(eps=4)),
        dict(optim_wrapper=OptimWrapperDict),
        'OptimWrapperDict holds several optimizers',
    ),
    # carry='epoch' would start each update from zero.
    (
        epochs(1, free(eps=4, replays=1)),
        dict(batch_size=6),
        "one update per pass.*set carry='run'",
    ),
    # The adversary would be weaker than its settings say, to the end.
    (epochs(1, free(warmup_iters=13)), {}, 'more than the 12 updates of the training'),
    (epochs(1, pgd(warmup_iters=4)), {}, 'more than the 3 updates of the training'),
    # mmdet would notice in the first validation, or not at all.
    (
        epochs(1, free(eps=4)),
        dict(classes=tiny.CLASSES[:2]),
        'the model has 3 classes and the dataset has 2',
    ),
    # Class names that are not the file's leave no object to mmdet.
    *(
        (
            train_cfg,
            dict(classes=('person', 'car', 'dog')),
            'the training has 6 images and no box at all: check ann_file',
        )
        for train_cfg in (epochs(1, free(eps=4)), iters(1, pgd(eps=4)))
    ),
]


@pytest.mark.parametrize(('train_cfg', 'change', 'sentence'), REFUSED)
def test_training_is_refused_before_anything_is_updated(
    build, coco, train_cfg, change, sentence
):
    settings = {}
    if 'batch_size' in change or 'classes' in change:
        size = change.get('batch_size', 2)
        loader = tiny.loader(coco, test=False, batch_size=size, scale=(64, 48))
        classes = change.get('classes', tiny.CLASSES)
        loader['dataset']['metainfo'] = dict(classes=classes)
        settings['train_dataloader'] = loader
    wrapper = change.get('optim_wrapper')
    if isinstance(wrapper, dict):
        settings['optim_wrapper'] = wrapper
    runner = build(train_cfg=train_cfg, **settings)
    if wrapper is OptimWrapperDict:
        optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.01)
        runner.optim_wrapper = OptimWrapperDict(main=OptimWrapper(optimizer))
    runner._init_model_weights()
    runner._init_model_weights = lambda: None
    before = state_of(runner)
    with pytest.raises(ConfigError, match=sentence):
        runner.train()
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_built_parts_are_taken_as_they_are(build):
    """Loop arguments may be objects, as mmengine's may: a loader, an adversary."""
    runner = build(train_cfg=epochs(1, free(eps=4)))
    loader = Runner.build_dataloader(runner.cfg.train_dataloader, seed=0)
    runner._train_dataloader = loader
    runner._train_loop = epochs(1, FreeAdversary(eps=2, replays=2))
    assert len(train(runner).loss) == 6
    assert runner.train_dataloader.dataset is loader.dataset
    assert runner.train_loop.adversary.describe()['eps'] == 2
    assert len(loader) == 3


def test_images_without_objects_train(build, coco):
    """They are part of the batches here and give finite losses and perturbations."""
    runner = build(
        train_cfg=epochs(1, free(eps=4, replays=2, carry='run')),
        train_dataloader=tiny.loader(coco, test=False, batch_size=1, scale=(64, 48)),
    )
    found = train(runner)
    assert [15] in found.images  # the last image has no box
    assert torch.tensor(found.loss).isfinite().all()
    state = runner.train_loop.adversary.state_dict(12)
    assert all(delta.isfinite().all() for delta in state['deltas'])
    content = json.loads((coco / 'annotations.json').read_text())
    assert 15 not in {a['image_id'] for a in content['annotations']}
