"""Classifiers in the loops: losses per image, mixing first, APGD-AT, evaluation."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from mmrobust.batch import float_images
from mmrobust.region import REGION, region_of
from mmrobust.objective.classifier import (
    ClassifierOracle,
    classifier_samples,
    is_classifier,
    make_oracle,
    mixed_first,
)
from mmrobust.training import (
    APGDAdversary,
    CWATAdversary,
    FreeAdversary,
    MTDAdversary,
    NoAdversary,
    PGDAdversary,
)
from mmrobust.errors import ConfigError
from mmrobust.objective import Objective, loss_mode
from mmrobust.utils.seeding import seeded
from updates import assert_same_state

MEAN, STD = torch.tensor([120.0, 110, 100]), torch.tensor([60.0, 50, 40])
NUM_CLASSES = 5


def classifier(augments=None, smooth=0.1):
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(
            type='ClsDataPreprocessor',
            num_classes=NUM_CLASSES,
            mean=MEAN.tolist(),
            std=STD.tolist(),
            to_rgb=True,
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            stem_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1,),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=NUM_CLASSES,
            in_channels=16,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=smooth, mode='original'),
        ),
        train_cfg=dict(augments=augments) if augments else None,
    )


def build(augments=None, seed=0):
    init_default_scope('mmpretrain')
    torch.manual_seed(seed)
    model = MODELS.build(classifier(augments))
    model.init_weights()
    with torch.no_grad():
        model.head.fc.weight.normal_(std=1.0)  # scores that differ
    return model.train()


def make_batch(count=4, side=24):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator)
    samples = [
        DataSample(metainfo=dict(sample_idx=i, img_shape=(side, side))).set_gt_label(
            i % NUM_CLASSES
        )
        for i in range(count)
    ]
    return dict(inputs=images.to(torch.uint8), data_samples=samples)


def sgd(model, lr=0.05):
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=lr))


def watch(model):
    """Store images and targets that reach the backbone, and whether in training."""
    seen = []

    def note(module, args):
        data = args[0]
        samples = data['data_samples']
        target = [s.get('gt_score', s.gt_label).clone() for s in samples]
        images = [image.detach().float().clone() for image in data['inputs']]
        seen.append((torch.stack(images), torch.stack(target), model.training))

    model.data_preprocessor.register_forward_pre_hook(note)
    return seen


def smoothed_loss(model, pixels, soft):
    """Cross entropy per image, written out: no part of mmrobust or of the head."""
    rgb = pixels.flip(1)
    normal = (rgb - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    feature = model.backbone(normal)[-1].mean((2, 3))
    logits = feature @ model.head.fc.weight.T + model.head.fc.bias
    target = 0.9 * soft + 0.1 / NUM_CLASSES
    return -(target * F.log_softmax(logits, 1)).sum(1)


def one_hot(batch):
    labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
    return F.one_hot(labels, NUM_CLASSES).float()


@pytest.mark.parametrize('soft', [False, True])
def test_the_oracle_gives_every_image_its_own_loss_and_gradient(soft):
    model, batch = build(), make_batch()
    samples = classifier_samples(batch['data_samples'], 'cpu')
    target = one_hot(batch)
    if soft:
        target = torch.softmax(torch.randn(4, NUM_CLASSES), 1)
        for sample, score in zip(samples, target, strict=True):
            sample.set_gt_score(score)
    images = float_images(batch, 'cpu')
    with loss_mode(model):
        oracle = make_oracle(model, batch, samples, Objective('total'), False)
        values, grads = oracle.value_and_grad(images)
        assert torch.equal(oracle.value(images), values)
        for i, image in enumerate(images):
            leaf = image[None].clone().requires_grad_()
            loss = smoothed_loss(model, leaf, target[i : i + 1])
            loss.sum().backward()
            assert values[i].item() == pytest.approx(loss.item(), abs=1e-5)
            torch.testing.assert_close(grads[i], leaf.grad[0], atol=1e-7, rtol=1e-4)
    assert isinstance(oracle, ClassifierOracle)
    assert (oracle.forwards, oracle.backwards) == (8, 4)


MIXES = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]


@pytest.mark.parametrize('loss', ['LabelSmoothLoss', 'CrossEntropyLoss'])
def test_evaluation_is_not_misled_by_smoothed_or_mixed_labels(loss):
    """The ascent of a smoothed loss makes certain images more certain still."""
    model, batch = build(MIXES), make_batch()
    if loss == 'CrossEntropyLoss':  # one-hot labels of whole numbers reach it
        model.head.loss_module = MODELS.build(dict(type=loss))
    images = torch.stack(float_images(batch, 'cpu'))
    with torch.no_grad():
        model.head.fc.weight *= 10  # above 0.92 for one class
        data = model.eval().data_preprocessor(dict(inputs=images), False)
        scores = model(**data, mode='tensor').softmax(1)
    assert scores.max(1).values.max() > 0.95
    labels = scores.argmax(1)
    for sample, label in zip(batch['data_samples'], labels, strict=True):
        sample.set_gt_label(int(label))
    samples = classifier_samples(batch['data_samples'], 'cpu')
    with loss_mode(model):
        oracle = make_oracle(model, batch, samples, Objective('total'))
        values, grads = oracle.value_and_grad(list(images))
        for i, image in enumerate(images):
            leaf = image[None].clone().requires_grad_()
            feature = model.backbone(
                (leaf.flip(1) - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
            )
            expected = F.cross_entropy(
                model.head.fc(feature[-1].mean((2, 3))), labels[i : i + 1]
            )
            expected.backward()
            assert values[i].item() == pytest.approx(expected.item(), abs=1e-5)
            torch.testing.assert_close(grads[i], leaf.grad[0], atol=1e-7, rtol=1e-3)


def test_apgd_training_is_the_published_two_steps():
    """Two steps of 2 eps, momentum 1 and 0.75, the best of three points, eval mode."""
    model, batch = build(), make_batch()
    clean = torch.stack(float_images(batch, 'cpu'))
    eps, target = 8.0, one_hot(batch)
    low, high = (clean - eps).clamp_min(0), (clean + eps).clamp_max(255)

    def loss_and_grad(point):
        leaf = point.clone().requires_grad_()
        values = smoothed_loss(model, leaf, target)
        (grad,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), grad

    model.eval()
    value_0, grad = loss_and_grad(clean)
    first = (clean + 2 * eps * grad.sign()).clamp(low, high)
    value_1, grad = loss_and_grad(first)
    target_point = (first + 2 * eps * grad.sign()).clamp(low, high)
    second = first + 0.75 * (target_point - first) + 0.25 * (first - clean)
    second = second.clamp(low, high)
    value_2, _ = loss_and_grad(second)
    values = torch.stack([value_0, value_1, value_2])
    best = values.argmax(0)
    expected = torch.stack(
        [(clean, first, second)[best[i]][i] for i in range(len(clean))]
    )
    model.train()

    seen = watch(model)
    APGDAdversary(eps=eps).train_step(model, sgd(model), batch, 0)
    learnt, _, training = seen[-1]
    assert training
    assert [mode for *_, mode in seen] == [False, False, False, True]
    different = (learnt - expected).abs().gt(1e-3).flatten(1).float().mean(1)
    assert different.max() < 0.01  # a gradient of zero may have either sign
    assert model.training
    assert values.max(0).values.min() > 0
    with torch.no_grad():
        assert all(values.max(0).values >= value_0)


def test_mixing_first_gives_what_mixing_last_gives():
    model, batch = build(MIXES), make_batch()
    preprocessor = model.data_preprocessor
    for seed in range(6):  # both kinds are drawn
        with mixed_first(model, batch, seed) as mixed:
            assert preprocessor.batch_augments is None
            ours = preprocessor(mixed, True)
        stock = make_batch()
        with seeded(seed, torch.device('cpu')):
            theirs = preprocessor(stock, True)
        torch.testing.assert_close(ours['inputs'], theirs['inputs'], atol=1e-5, rtol=0)
        for one, other in zip(
            ours['data_samples'], theirs['data_samples'], strict=True
        ):
            torch.testing.assert_close(one.gt_score, other.gt_score)
            assert 0 < one.gt_score.max() <= 1
    assert 'gt_score' not in batch['data_samples'][0]  # the batch stays as it was
    assert batch['inputs'].dtype == torch.uint8
    assert preprocessor.batch_augments is not None


def test_what_is_mixed_of_padding_alone_is_padding():
    model, batch = build(MIXES), make_batch()
    for i, sample in enumerate(batch['data_samples']):
        region = torch.zeros_like(batch['inputs'][i][:1], dtype=torch.bool)
        region[:, i : i + 20, 2 * i :] = True
        sample.set_field(region, REGION)
        batch['inputs'][i] = 100 * region
    del batch['data_samples'][0].attackable  # all of it
    batch['inputs'][0] = 100
    for seed in range(6):  # both kinds are drawn
        with mixed_first(model, batch, seed) as mixed:
            pairs = zip(mixed['inputs'], mixed['data_samples'], strict=True)
            for image, sample in pairs:
                assert torch.equal(region_of(sample), image[:1] > 0)


def test_attack_and_update_see_the_same_soft_labels():
    model, batch = build(MIXES), make_batch()
    seen = watch(model)
    APGDAdversary(eps=4).train_step(model, sgd(model), batch, 0)
    (start, target, _), *others = seen
    assert target.shape == (4, NUM_CLASSES)
    assert len(others) == 3
    for images, other, _ in others:
        assert torch.equal(other, target)
        assert (images - start).abs().max() <= 4 + 1e-4
    assert not torch.equal(start, batch['inputs'].float())


def test_replays_share_one_mix():
    model, batch = build(MIXES), make_batch()
    seen = watch(model)
    adversary, wrapper = FreeAdversary(eps=0, replays=2), sgd(model)
    for iteration in range(4):
        adversary.train_step(model, wrapper, batch, iteration)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[1][0], seen[2][0])


def test_the_control_is_the_stock_update_with_its_own_mixing():
    plain, ours = build(MIXES), build(MIXES)
    torch.manual_seed(5)
    np.random.seed(5)
    plain.train_step(make_batch(), sgd(plain))
    torch.manual_seed(5)
    np.random.seed(5)
    NoAdversary().train_step(ours, sgd(ours), make_batch(), 0)
    assert_same_state(plain, ours)


@pytest.mark.parametrize(('norm', 'eps'), [('linf', 8), ('l2', 300), ('l1', 5000)])
def test_adversarial_updates_see_a_larger_loss_inside_the_ball(norm, eps):
    for adversary in (
        APGDAdversary(norm, eps),
        PGDAdversary(norm, eps, num_steps=3, keep_best=True),
        PGDAdversary(norm, eps, num_steps=1, random_start=False),
    ):
        model, batch = build(), make_batch()
        seen = watch(model)
        adversary.train_step(model, sgd(model, lr=0), batch, 0)
        delta = (seen[-1][0] - batch['inputs']).flatten(1)
        order = {'linf': float('inf'), 'l2': 2, 'l1': 1}[norm]
        assert 0 < delta.norm(order, dim=1).max() <= eps * (1 + 1e-5)
        model.eval()
        with torch.no_grad():
            before = smoothed_loss(model, batch['inputs'].float(), one_hot(batch))
            after = smoothed_loss(model, seen[-1][0], one_hot(batch))
        assert (after > before).all(), type(adversary)


def test_describe_tells_the_full_radius_during_a_warm_up():
    model = build()
    for adversary in (
        APGDAdversary(eps=8, warmup_iters=4),
        PGDAdversary(eps=8, step_size=2, warmup_iters=4),
    ):
        before = adversary.describe()
        adversary.train_step(model, sgd(model), make_batch(), 0)
        assert adversary.describe() == before
        assert before['eps'] == 8


def test_a_model_that_ignores_the_image_has_no_gradient():
    model, batch = build(), make_batch()
    samples = classifier_samples(batch['data_samples'], 'cpu')
    model.backbone.forward = lambda x: (torch.ones(len(x), 16, 1, 1),)
    with loss_mode(model):
        oracle = make_oracle(model, batch, samples, Objective('total'))
        values, grads = oracle.value_and_grad(float_images(batch, 'cpu'))
    assert torch.isfinite(values).all()
    assert all(torch.equal(grad, torch.zeros(3, 24, 24)) for grad in grads)


def test_an_attack_that_mends_an_image_does_not_count_for_the_model(folder, tmp_path):
    """Nothing attacked is right that was wrong: robust accuracy, as AutoAttack's."""
    init_default_scope('mmpretrain')
    cfg = runner_config(folder, tmp_path / 'mend')
    cfg.test_cfg.attacks = dict(noise=dict(type='mmrobust.RandomNoise', eps=200))
    cfg.test_cfg.save_adv = str(tmp_path / 'adv')
    runner = Runner.from_cfg(cfg)
    torch.manual_seed(0)
    runner.model.init_weights()
    metrics = runner.test()
    assert metrics['noise/accuracy/top1'] <= metrics['accuracy/top1'] < 100
    dataset = runner.test_dataloader.dataset
    runner.model.eval()
    unchanged = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        with torch.no_grad():
            (output,) = runner.model.test_step(
                dict(
                    inputs=sample['inputs'][None], data_samples=[sample['data_samples']]
                )
            )
        adversarial = np.load(tmp_path / 'adv' / 'noise' / f'{index}.npz')['image']
        same = np.array_equal(adversarial, sample['inputs'].float().numpy())
        right = int(output.pred_label) == int(output.gt_label)
        assert same != right
        unchanged += same
    assert 0 < unchanged < len(dataset)


def test_what_does_not_fit_a_classifier_is_refused():
    model, batch = build(), make_batch()
    assert is_classifier(model)
    with pytest.raises(ConfigError, match='class_weighting'):
        CWATAdversary().train_step(model, sgd(model), batch, 0)
    with pytest.raises(ConfigError, match="no loss named 'loss_cls'"):
        PGDAdversary(objective='cls').train_step(model, sgd(model), batch, 0)
    with pytest.raises(ConfigError, match='take PGDAdversary for a classifier'):
        MTDAdversary().train_step(model, sgd(model), batch, 0)
    batch['data_samples'] = [DataSample() for _ in range(4)]
    with pytest.raises(ConfigError, match='no label'):
        classifier_samples(batch['data_samples'], 'cpu')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three classes that differ in colour, in one folder each."""
    root = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for label, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200)]):
        for split, count in (('train', 8), ('test', 4)):
            place = root / split / f'class{label}'
            place.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-30, 31, (24, 24, 3))
                picture = np.clip(noise + colour, 0, 255).astype(np.uint8)
                cv2.imwrite(str(place / f'{i}.png'), picture)
    return root


def runner_config(folder, work_dir, **overrides):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

    def loader(split, sampler):
        return dict(
            batch_size=5,  # does not divide 12
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            dataset=dict(
                type='CustomDataset',
                data_root=str(folder),
                data_prefix=split,
                pipeline=pipeline,
            ),
        )

    model = classifier()
    model['head']['num_classes'] = model['data_preprocessor']['num_classes'] = 3
    cfg = dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmrobust']),
        work_dir=str(work_dir),
        model=model,
        train_dataloader=loader('train', 'shuffle'),
        test_dataloader=loader('test', 'keep'),
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        train_cfg=dict(
            type='mmrobust.AdvEpochBasedTrainLoop',
            max_epochs=6,
            adversary=dict(type='mmrobust.APGDAdversary', eps=4),
        ),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop',
            attacks=dict(
                weak=dict(type='mmrobust.PGD', eps=2, num_steps=3),
                noise=dict(type='mmrobust.RandomNoise', eps=2),
                huge=dict(type='mmrobust.PGD', eps=255, num_steps=20),
            ),
        ),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        custom_hooks=[dict(type='EMAHook', momentum=0.1, priority='ABOVE_NORMAL')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=6)),
        visualizer=dict(
            type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
        ),
        randomness=dict(seed=0),
        experiment_name=f'cls_{work_dir.name}',
        log_level='WARNING',
    )
    cfg.update(overrides)
    return Config(cfg)


def test_train_evaluate_and_hand_over_to_a_detector(folder, tmp_path):
    init_default_scope('mmpretrain')
    runner = Runner.from_cfg(runner_config(folder, tmp_path / 'run'))
    runner.train()
    metrics = runner.test()
    assert metrics['accuracy/top1'] == 100
    assert metrics['weak/accuracy/top1'] == 100
    assert metrics['huge/accuracy/top1'] < 80
    report = json.loads((tmp_path / 'run' / 'robustness.json').read_text())
    attacks = {attack['name']: attack for attack in report['attacks']}
    assert attacks['weak']['cost']['backwards'] == 12 * 3
    # The clean image, 3 steps, the last iterate, and whether it is right at all.
    assert attacks['weak']['cost']['forwards'] == 12 * 6
    assert report['complete']

    checkpoint = tmp_path / 'run' / 'epoch_6.pth'
    saved = torch.load(checkpoint, map_location='cpu', weights_only=False)
    averaged = {
        name.removeprefix('backbone.'): value
        for name, value in saved['state_dict'].items()
        if name.startswith('backbone.')
    }
    from mmdet.registry import MODELS as DETECTION

    init_default_scope('mmdet')
    backbone = DETECTION.build(
        dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            stem_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(0, 1),
            init_cfg=dict(
                type='mmrobust.PretrainedBackbone', checkpoint=str(checkpoint)
            ),
        )
    )
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, averaged[name]), name
    # They are the average of the run, not its last weights.
    last = saved['ema_state_dict']['module.backbone.conv1.weight']
    assert not torch.equal(averaged['conv1.weight'], last)


def test_labels_are_checked_before_the_benign_pass(folder, tmp_path, monkeypatch):
    init_default_scope('mmpretrain')
    cfg = runner_config(folder, tmp_path / 'run')
    cfg.model.head.num_classes = 2
    runner = Runner.from_cfg(cfg)
    monkeypatch.setattr(runner.test_loop, 'run_iter', lambda *args: pytest.fail('late'))
    with pytest.raises(ConfigError, match='label 2, but the model has 2 classes'):
        runner.test()


def test_grey_pictures_and_probabilities(folder, tmp_path):
    init_default_scope('mmpretrain')
    cfg = runner_config(folder, tmp_path / 'run')
    cfg.test_dataloader.dataset.pipeline[0]['color_type'] = 'grayscale'
    cfg.model.data_preprocessor.update(mean=[110.0], std=[50.0], to_rgb=False)
    cfg.model.backbone.in_channels = 1
    cfg.test_cfg.attacks.pop('huge')
    hook = dict(type='mmrobust.AttackVisualizationHook', out_dir='shown', num_images=2)
    cfg.default_hooks.attack_visualization = hook
    runner = Runner.from_cfg(cfg)
    forward = runner.model.head.forward
    runner.model.head.forward = lambda feats: forward(feats).softmax(1)
    runner.test()
    pictures = sorted((tmp_path / 'run').glob('*/shown/attacks/attack_weak_*.png'))
    assert len(pictures) == 2
    left = cv2.imread(str(pictures[0]))[40:, 4:60]
    assert (left == left[..., :1]).all()  # grey, and not empty
    assert left.std() > 0
    report = json.loads((tmp_path / 'run' / 'robustness.json').read_text())
    assert 'look like probabilities' in report['checks'][0]


def test_a_result_depends_on_no_other_image(folder, tmp_path):
    """Another batch size gives the same adversarial images, random start and all."""
    init_default_scope('mmpretrain')
    found = []
    for batch_size in (1, 5):
        cfg = runner_config(folder, tmp_path / str(batch_size))
        cfg.test_dataloader.batch_size = batch_size
        cfg.test_cfg.attacks.pop('huge')
        cfg.test_cfg.save_adv = str(tmp_path / f'adv{batch_size}')
        runner = Runner.from_cfg(cfg)
        torch.manual_seed(1)
        runner.model.init_weights()
        runner.test()
        names = sorted((tmp_path / f'adv{batch_size}' / 'weak').glob('*.npz'))
        assert len(names) == 12
        found.append(np.stack([np.load(name)['image'] for name in names]))
    # Rounding in other batches may flip the sign of a gradient near zero.
    assert (np.abs(found[0] - found[1]) > 1e-3).mean() < 0.01
