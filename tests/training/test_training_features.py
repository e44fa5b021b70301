"""What mmdet's trainings use besides a plain optimizer, with adversarial training."""

from copy import deepcopy

import pytest
import tiny
import torch
import updates
from mmengine.hooks import EMAHook, Hook
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmrobust.training.optim import BFloat16OptimWrapper
from mmrobust.training import FreeAdversary, PGDAdversary
from mmrobust.errors import ConfigError
from torch import nn
from torch.nn.functional import interpolate
from updates import (
    ScalingOptimWrapper,
    assert_same_state,
    make_batch,
    make_model,
    sgd,
    train,
)


EPS = 4
FREE = dict(type='mmrobust.FreeAdversary', eps=EPS, replays=2, carry='run')
PGD = dict(type='mmrobust.PGDAdversary', eps=EPS, num_steps=1)
# Both methods in both loops.
RUNS = dict(
    epoch_free=('Epoch', FREE),
    iter_free=('Iter', FREE),
    epoch_pgd=('Epoch', PGD),
    iter_pgd=('Iter', PGD),
)
# One of each method, one of each loop.
TWO = {name: RUNS[name] for name in ('epoch_free', 'iter_pgd')}


def runs(cases, *values):
    """Runs a test as some of them, each with its value of the argument ``value``."""
    names = ['kind', 'adversary', *(['value'] if values else [])]
    rows = [
        (*case, values[number % len(values)]) if values else case
        for number, case in enumerate(cases.values())
    ]
    return pytest.mark.parametrize(names, rows, ids=list(cases))


@pytest.fixture
def build(build):
    """Runs of six updates on the tiny dataset, two images in each."""
    hooks = dict(
        param_scheduler=dict(type='ParamSchedulerHook'),
        sampler_seed=dict(type='DistSamplerSeedHook'),
        checkpoint=None,
        logger=None,
    )

    def make(kind, adversary, *model, **overrides):
        passes = 1 if adversary.get('replays') == 2 else 2
        train_cfg = (
            updates.epochs(passes, adversary)
            if kind == 'Epoch'
            else updates.iters(6, adversary)
        )
        settings = dict(train_cfg=train_cfg, default_hooks=hooks)
        return build(*model, **{**settings, **overrides})

    return make


class Watch(Hook):
    """The loader's batches, the images that the network was shown, and the losses.

    The last of the images of an update are those that the weights learn from.
    """

    def __init__(self, runner):
        self.clean = []
        self.boxes = []
        self.seen = []
        self.logs = []
        self.lr = []
        runner.model.data_preprocessor.register_forward_pre_hook(
            lambda module, args: self.seen[-1].append(
                [image.detach().clone() for image in args[0]['inputs']]
            )
        )
        runner.register_hook(self, priority='VERY_HIGH')

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.clean.append([image.float() for image in data_batch['inputs']])
        self.boxes.append(boxes_of(data_batch))
        self.seen.append([])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.logs.append({key: float(value) for key, value in outputs.items()})
        self.lr.append(runner.optim_wrapper.get_lr()['lr'][0])

    def check_images(self, updates):
        """Every update but FreeAT's first was adversarial, and none too much."""
        assert len(self.seen) == updates
        for number, (images, clean) in enumerate(
            zip(self.seen, self.clean, strict=True)
        ):
            for image, original in zip(images[-1], clean, strict=True):
                assert image.shape == original.shape
                assert image.min() >= 0
                assert image.max() <= 255
                distance = float((image - original).abs().max())
                assert distance <= EPS + 1e-4
                assert distance > 0 or number == 0


def learns(module):
    """Not in PGD's inner steps, in which weights are frozen."""
    return any(weight.requires_grad for weight in module.parameters())


def boxes_of(data_batch):
    found = []
    for sample in data_batch['data_samples']:
        boxes = sample.gt_instances.bboxes
        found.append(getattr(boxes, 'tensor', boxes).clone())
    return found


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class Sources(Hook):
    """The weights before the first update and after every one."""

    def __init__(self):
        self.states = []

    def before_train(self, runner):
        self.states.append(weights_of(runner.model))

    def after_train_iter(self, runner, *args, **kwargs):
        self.states.append(weights_of(runner.model))


# ------------------------------------------------------------ all at once

FROZEN = ('backbone.conv1', 'backbone.bn1', 'backbone.layer1', 'backbone.layer2')


@runs(RUNS, False, True, True, False)
def test_features_together(build, coco, kind, adversary, value):
    """Averaged weights, clipping, a scaled learning rate, frozen stages, many sizes."""
    loader = tiny.loader(coco, test=False, batch_size=2)
    scales = [(64, 48), (96, 72), (128, 96)]
    resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
    loader['dataset']['pipeline'][2] = resize
    sampler = 'DefaultSampler' if kind == 'Epoch' else 'InfiniteSampler'
    loader['sampler'] = dict(type=sampler, shuffle=True)
    model = tiny.fcos()
    model['backbone'].update(frozen_stages=2)
    settings = dict(
        model=model,
        train_dataloader=loader,
        auto_scale_lr=dict(enable=True, base_batch_size=8),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=2)
        ],
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.01),
            clip_grad=dict(max_norm=0.5),
        ),
    )
    ema = dict(type='EMAHook', momentum=0.25, update_buffers=value)
    runner = build(kind, adversary, custom_hooks=[ema], **settings)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    sources, watch = Sources(), Watch(runner)
    norms = []

    def note(optimizer, *args):
        weights = [w for group in optimizer.param_groups for w in group['params']]
        grads = [w.grad.flatten() for w in weights if w.grad is not None]
        norms.append(float(torch.cat(grads).norm()))

    runner.optim_wrapper.optimizer.register_step_pre_hook(note)
    runner.register_hook(sources)
    runner.train()
    watch.check_images(6)
    assert len({tuple(i.shape) for images in watch.clean for i in images}) > 3
    # The gradients that the optimizer gets; the largest of them is cut.
    assert norms == pytest.approx([0.5] * 6, rel=1e-4)
    # 0.01 is for 8 images, a batch has 2, however often it is replayed.
    assert watch.lr == pytest.approx([0.00125, *[0.0025] * 5])
    before, *updated = sources.states
    last = updated[-1]
    changed = {name for name in last if not torch.equal(last[name], before[name])}
    assert not [name for name in changed if name.startswith(FROZEN)]
    # The gradient comes through to what is not frozen, and to the image.
    assert 'backbone.layer3.0.conv1.weight' in changed
    check_average(runner, updated, value)
    if value or kind == 'Iter':
        return
    # The average does not reach into the training.
    alone = build(kind, adversary, **settings)
    alone.train()
    for name, weight in weights_of(alone.model).items():
        assert torch.equal(weight, last[name]), name


def check_average(runner, states, buffers):
    """By hand, after every update, replays included; inner steps do not count."""
    assert len(states) == 6
    average = {k: v.double() for k, v in states[0].items()}
    for state in states[1:]:
        average = {k: 0.75 * v + 0.25 * state[k].double() for k, v in average.items()}
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    found = weights_of(hook.ema_model.module)
    parameters = {name for name, _ in runner.model.named_parameters()}
    for name, value in found.items():
        if not value.is_floating_point():
            # PGD's inner steps see BatchNorm's statistics and do not add to them.
            assert int(states[-1][name]) == (0 if name.startswith(FROZEN) else 6)
        elif name in parameters or buffers:
            torch.testing.assert_close(value.double(), average[name])
        else:
            assert torch.equal(value, states[-1][name])
    name = 'backbone.layer3.0.conv1.weight'
    assert not torch.equal(found[name], states[-1][name])


# ------------------------------------------------------------ gradients


def test_clipping_does_not_reach_the_perturbation():
    """Cut value by value to nearly nothing, its direction in l2 would be another."""
    batch = make_batch([(64, 96), (80, 64)], 0)
    results = []
    for clip in (None, dict(type='value', clip_value=1e-9)):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        adversary = FreeAdversary('l2', 300, replays=1, carry='run')
        (deltas,) = train(
            adversary, model, [batch], OptimWrapper(optimizer, clip_grad=clip)
        )
        results.append(deltas)
        torch.manual_seed(0)
    for plain, clipped in zip(*results, strict=True):
        assert plain.norm() == pytest.approx(300, rel=1e-5)
        assert torch.equal(plain, clipped)


class Mean(BaseModel):
    """A loss that is the mean over the images, unlike a detector's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, inputs, data_samples=None, mode=''):
        images = torch.stack([image.float() for image in inputs]) / 255
        return {'loss': self.conv(images).tanh().square().mean()}


class Sample:
    """What an adversary asks of a sample that its model does not look at."""

    def to(self, device):
        return self


@pytest.mark.parametrize('counts', [2, 4])
def test_accumulated_batches_are_one_large_batch(counts):
    """PGD-AT; within float error, for the perturbations are the same bits."""
    start, images = Mean(), torch.randint(0, 256, (8, 3, 9, 9), dtype=torch.uint8)
    pieces = []
    for parts in (1, counts):
        model = deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=10.0, momentum=0.9)
        wrapper = OptimWrapper(optimizer, accumulative_counts=parts)
        adversary = PGDAdversary(eps=8, num_steps=2, random_start=False)
        size, iteration = len(images) // parts, 0
        for _ in range(3):
            for part in images.split(size):
                batch = dict(inputs=part, data_samples=[Sample()] * size)
                adversary.train_step(model, wrapper, batch, iteration)
                iteration += 1
        pieces.append(model.conv.weight)
    assert not torch.allclose(pieces[0], start.conv.weight, rtol=1e-2)
    torch.testing.assert_close(*pieces, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------ mixed precision


@pytest.mark.parametrize(
    ('norm', 'objective'), [('linf', 'cls'), ('l2', 'total'), ('l1', 'cls')]
)
def test_a_loss_scale_leaves_the_perturbation_alone(norm, objective):
    """A power of two: every bit is as without it, and so are the weights."""
    eps = {'linf': 8, 'l2': 300, 'l1': 3000}[norm]
    batches = [make_batch([(64, 96), (80, 64)], 0)]
    results = []
    for scale in (None, 1024.0):
        torch.manual_seed(0)
        model = make_model()
        wrapper = sgd(model)
        if scale is not None:
            wrapper = ScalingOptimWrapper(wrapper.optimizer, scale=scale)
        adversary = FreeAdversary(norm, eps, objective=objective, carry='run')
        results.append((model, train(adversary, model, batches, wrapper)))
    (plain, expected), (scaled, found) = results
    assert_same_state(scaled, plain)
    assert len(found) == 4
    for ours, theirs in zip(found, expected, strict=True):
        for delta, other in zip(ours, theirs, strict=True):
            assert torch.equal(delta, other)
            assert (delta != 0).any()


BF16 = dict(
    type='mmrobust.BFloat16OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3),
    clip_grad=dict(max_norm=10),
)


@runs(TWO, tiny.faster_rcnn, tiny.fcos)
def test_bfloat16_trains(build, kind, adversary, value):
    runner = build(kind, adversary, value(), optim_wrapper=BF16)
    kinds = set()
    runner.model.neck.register_forward_hook(
        lambda module, args, out: kinds.add(
            (learns(runner.model.backbone), out[0].dtype)
        )
    )
    watch = Watch(runner)
    runner.train()
    assert isinstance(runner.optim_wrapper, BFloat16OptimWrapper)
    watch.check_images(6)
    # The update computes in bfloat16, the attack before it as it does without.
    assert (True, torch.bfloat16) in kinds
    assert kinds <= {(True, torch.bfloat16), (False, torch.float32)}
    for weight in runner.model.parameters():
        assert weight.dtype == torch.float32
        assert weight.isfinite().all()


# ------------------------------------------------------------ sizes and mixtures


def with_augment(**augment):
    model = tiny.fcos()
    model['data_preprocessor'] = dict(
        model['data_preprocessor'], batch_augments=[augment]
    )
    return model


RESIZE = dict(type='BatchSyncRandomResize', random_size_range=(32, 128), interval=1)
PAD = dict(type='BatchFixedSizePad', size=(96, 160))


@runs(TWO, RESIZE, PAD)
def test_batch_augments(build, kind, adversary, value):
    """They change what the network sees, not what the loader handed out."""
    runner = build(kind, adversary, with_augment(**value))
    inner = []

    def note(module, args):
        if learns(module):
            inner.append(tuple(args[0].shape[-2:]))

    runner.model.backbone.register_forward_pre_hook(note)
    watch = Watch(runner)
    runner.train()
    watch.check_images(6)
    assert len(inner) == 6
    assert len(set(inner)) > 2 if value is RESIZE else set(inner) == {(96, 160)}
    if adversary is FREE:
        for first in range(0, 6, 2):  # the second replay of each batch
            for before, after in zip(*watch.boxes[first : first + 2], strict=True):
                assert torch.equal(before, after)


def test_a_resized_batch_moves_its_own_pixels():
    """The gradient comes back through the resizing, to the image as the loader has it.

    By hand: the image is resized in plain torch, and its gradient taken there.
    """
    model = make_model()
    plain = deepcopy(model)
    batch = make_batch([(64, 96)], 0)

    def half(inputs, samples):
        size = (32, 64)
        inputs = interpolate(inputs, size=size, mode='bilinear')
        factors = torch.tensor([64 / 96, 0.5, 64 / 96, 0.5])
        for sample in samples:
            sample.gt_instances.bboxes[...] = sample.gt_instances.bboxes * factors
            sample.set_metainfo(dict(img_shape=size, batch_input_shape=size))
        return inputs, samples

    model.data_preprocessor.batch_augments = [half]
    adversary = FreeAdversary(eps=8, step_size=3, replays=1, carry='run')
    (deltas,) = train(adversary, model, [batch])

    leaf = batch['inputs'][0].float().requires_grad_()
    data = plain.data_preprocessor({**deepcopy(batch), 'inputs': [leaf]}, True)
    data['inputs'], data['data_samples'] = half(data['inputs'], data['data_samples'])
    plain.parse_losses(plain(**data, mode='loss'))[0].backward()
    assert torch.equal(deltas[0], 3 * leaf.grad.sign())
    assert (deltas[0] != 0).float().mean() > 0.5


def mosaic(root, endless):
    """YOLOX's data, 64 x 64."""
    loader = tiny.loader(root, test=False, batch_size=2)
    inner = loader['dataset']
    inner['pipeline'] = inner['pipeline'][:2]
    loader['dataset'] = dict(
        type='MultiImageMixDataset',
        dataset=inner,
        pipeline=[
            dict(type='Mosaic', img_scale=(64, 64), pad_val=114.0),
            dict(type='RandomAffine', border=(-32, -32)),
            dict(type='MixUp', img_scale=(64, 64), pad_val=114.0),
            dict(type='YOLOXHSVRandomAug'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='Resize', scale=(96, 64), keep_ratio=True),
            dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0,) * 3)),
            dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
            dict(type='PackDetInputs'),
        ],
    )
    loader['sampler']['type'] = 'InfiniteSampler' if endless else 'DefaultSampler'
    return loader


def yolox():
    """YOLOX with its batch augmentation."""
    model = get_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py').model.to_dict()
    (resize,) = model['data_preprocessor']['batch_augments']
    resize.update(random_size_range=(32, 96), interval=2)
    model['backbone'].update(widen_factor=0.125, deepen_factor=0.1)
    model['neck'].update(in_channels=[32, 64, 128], out_channels=16)
    model['bbox_head'].update(
        num_classes=len(tiny.CLASSES), in_channels=16, feat_channels=16
    )
    return model


@runs(TWO)
def test_mosaic_mixup_and_their_end(build, coco, kind, adversary):
    """YOLOX: all of it in the first pass; the last pass without, and with L1 loss."""
    by_epoch = kind == 'Epoch'
    overrides = {}
    if by_epoch:
        overrides['train_cfg'] = updates.epochs(2, adversary)
        overrides['custom_hooks'] = [
            # Its count is one off: 0 is the last pass.
            dict(type='YOLOXModeSwitchHook', num_last_epochs=0, priority=48),
            dict(type='SyncNormHook', priority=48),
            dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.1),
        ]
    runner = build(
        kind,
        adversary,
        yolox(),
        train_dataloader=mosaic(coco, not by_epoch),
        **overrides,
    )
    watch = Watch(runner)
    runner.train()
    per_pass = 6 if adversary is FREE else 3
    watch.check_images(2 * per_pass if by_epoch else 6)
    with_l1 = ['loss_l1' in log for log in watch.logs]
    if by_epoch:
        skipped = runner.train_dataloader.dataset._skip_type_keys
        assert skipped == ('Mosaic', 'RandomAffine', 'MixUp')
        assert with_l1 == [False] * per_pass + [True] * per_pass
    else:
        assert with_l1 == [False] * 6
    assert all(torch.tensor(log['loss']).isfinite() for log in watch.logs)


# ------------------------------------------------------------ several images a sample


def soft_teacher(root):
    """A student with a teacher, and a loader of labelled and unlabelled images."""
    detector = tiny.faster_rcnn()
    model = dict(
        type='SoftTeacher',
        detector=detector,
        data_preprocessor=dict(
            type='MultiBranchDataPreprocessor',
            data_preprocessor=detector['data_preprocessor'],
        ),
        semi_train_cfg=dict(
            freeze_teacher=True,
            sup_weight=1.0,
            unsup_weight=4.0,
            pseudo_label_initial_score_thr=0.0,
            rpn_pseudo_thr=0.0,
            cls_pseudo_thr=0.0,
            reg_pseudo_thr=1.0,
            jitter_times=2,
            jitter_scale=0.06,
            min_pseudo_bbox_wh=(1e-2, 1e-2),
        ),
        semi_test_cfg=dict(predict_on='teacher'),
    )
    fields = ['sup', 'unsup_teacher', 'unsup_student']
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    keys += ('flip', 'flip_direction', 'homography_matrix')
    view = [
        dict(type='Resize', scale=(64, 48), keep_ratio=True),
        # Nothing is drawn here, which would not be what mmengine's own loop draws.
        dict(type='PackDetInputs', meta_keys=keys),
    ]
    labelled, unlabelled = (tiny.dataset(root, test=False) for _ in range(2))
    labelled['pipeline'] = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(64, 48), keep_ratio=True),
        dict(type='MultiBranch', branch_field=fields, sup=dict(type='PackDetInputs')),
    ]
    unlabelled['pipeline'] = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadEmptyAnnotations'),
        dict(
            type='MultiBranch',
            branch_field=fields,
            unsup_teacher=view,
            unsup_student=view,
        ),
    ]
    loader = tiny.loader(root, test=False, batch_size=2)
    loader['sampler'] = dict(
        type='GroupMultiSourceSampler', batch_size=2, source_ratio=[1, 1]
    )
    loader['dataset'] = dict(type='ConcatDataset', datasets=[labelled, unlabelled])
    return model, loader


@runs(TWO)
def test_teacher_and_student_are_refused(build, coco, kind, adversary):
    """Before anything is computed; also where the batch would be looked at first."""
    model, loader = soft_teacher(coco)
    if kind == 'Iter':
        adversary = dict(adversary, class_weighting='batch')
    runner = build(kind, adversary, model, train_dataloader=loader)
    forwards = []
    runner.model.register_forward_pre_hook(lambda *args: forwards.append(args))
    with pytest.raises(ConfigError, match=r'SoftTeacher takes several branches of im'):
        runner.train()
    assert runner.iter == 0
    assert not forwards


def test_teacher_and_student_train_without_an_adversary(build, coco):
    """The control of an experiment; as mmengine's own loop, bit for bit."""
    states = []
    adversary = dict(type='mmrobust.NoAdversary')
    for train_cfg in (updates.iters(2, None), updates.iters(2, adversary)):
        model, loader = soft_teacher(coco)
        runner = build(
            'Iter',
            adversary,
            model,
            train_dataloader=loader,
            train_cfg=train_cfg,
            custom_hooks=[dict(type='MeanTeacherHook', momentum=0.5)],
        )
        runner.train()
        states.append(weights_of(runner.model))
    name = 'rpn_head.rpn_cls.bias'
    student, teacher = (states[0][f'{part}.{name}'] for part in ('student', 'teacher'))
    assert not torch.equal(student, teacher)
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize(
    ('preprocessor', 'words'),
    [
        (dict(type='TrackDataPreprocessor'), 'several frames of a video'),
        (dict(type='ReIDDataPreprocessor'), 'several pictures of an object'),
    ],
)
def test_samples_of_several_images_are_refused(build, preprocessor, words):
    model = tiny.fcos()
    model['data_preprocessor'] = preprocessor
    with pytest.raises(ConfigError, match=words):
        build('Epoch', PGD, model).train()


def test_a_trackers_detector_is_not_refused(build):
    """It is trained with mmdet's tracking preprocessor, one image in a sample."""
    model = tiny.fcos()
    model['data_preprocessor'] = {
        **model['data_preprocessor'],
        'type': 'TrackDataPreprocessor',
        'use_det_processor': True,
    }
    runner = build('Epoch', FREE, model)
    watch = Watch(runner)
    runner.train()
    watch.check_images(6)
