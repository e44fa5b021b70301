"""Interrupted anywhere, an evaluation ends with the report it would have had."""

import json
import os
import shutil
from collections import Counter
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import tiny
import torch
from evaluated import images_of
from mmdet.evaluation import CocoMetric
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmrobust.attacks import Attack
from mmrobust.evaluation.attack_pass import AttackPass
from mmrobust.evaluation.attacker import Attacker
from mmrobust.utils.store import StorePart, Store
from mmrobust.evaluation.images import annotations_digest
from mmrobust.evaluation.adversarial_images import AdversarialImages
from mmrobust.errors import ConfigError
from mmrobust.registry import ATTACKS
from mmrobust.report import RobustnessReport
from mmrobust.utils import files


PGD = dict(type='mmrobust.PGD', eps=8, num_steps=1)
ENSEMBLE = dict(
    type='mmrobust.Ensemble',
    eps=6,
    members=dict(
        total=dict(type='mmrobust.PGD', num_steps=1),
        cls=dict(type='mmrobust.PGD', num_steps=1, objective='cls'),
    ),
)
ATTACKS_OF_ALL = dict(pgd=PGD, both=ENSEMBLE)
MAP = 'coco/bbox_mAP'


class Interrupted(BaseException):
    """Not an Exception: nothing may take it for a mishap and go on."""


@pytest.fixture
def evaluate(evaluate):
    """Tests the trained detector with a new runner, as another process would."""

    def run(attacks=None, overrides=None, model=None, **loop):
        attacks = attacks or dict(pgd=PGD)
        return timeless(evaluate(attacks, None, model, overrides, **loop))

    return run


def timeless(report):
    """All but times, and texts that name files and runs."""
    if isinstance(report, dict):
        skipped = ('seconds', 'date', 'command', 'config_text')
        return {k: timeless(v) for k, v in report.items() if k not in skipped}
    return [timeless(v) for v in report] if isinstance(report, list) else report


@pytest.fixture
def work(monkeypatch):
    """How many images were attacked and predicted."""
    counts = Counter()
    for name in ('attack', 'predict'):
        stock = getattr(Attacker, name)

        def counted(*args, stock=stock, name=name):
            found = stock(*args)
            counts[name] += 1
            return found

        monkeypatch.setattr(Attacker, name, counted)
    return counts


@contextmanager
def interruption(owner, name, call, after=False):
    """The given call of a function does not return, or was not made at all."""
    stock, calls = getattr(owner, name), 0

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Interrupted
        found = stock(*args, **kwargs)
        if calls == call:
            raise Interrupted
        return found

    setattr(owner, name, interrupted)
    try:
        yield
    finally:
        setattr(owner, name, stock)


# In the order of an evaluation, each place in a run that goes on after the one before:
# function, call that does not return, whether it did its work, whether an image's is
# lost.
PLACES = [
    (Attacker, 'predict', 3, False, True),
    (StorePart, 'write', 2, False, True),
    (os, 'replace', 2, False, True),
    (StorePart, 'write', 1, True, False),
    (CocoMetric, 'compute_metrics', 1, False, False),
    (Attacker, 'attack', 3, False, True),
    (AdversarialImages, 'save', 2, False, True),
    (AttackPass, '_score', 1, False, False),
    (CocoMetric, 'compute_metrics', 2, False, False),
    (RobustnessReport, 'write', 2, False, False),
    (Attacker, 'attack', 4, False, True),
    (Attacker, 'predict', 3, False, True),
    (StorePart, 'write', 1, True, False),
    (AttackPass, '_score', 2, False, False),
    (CocoMetric, 'compute_metrics', 3, False, False),
    (RobustnessReport, 'write', 4, False, False),
    (files.os, 'fsync', 1, True, False),
    (Store, 'remove', 1, False, False),
]


def test_interrupted_everywhere(evaluate, work, tmp_path):
    adv = tmp_path / 'adv'
    settings = dict(attacks=ATTACKS_OF_ALL, num_images=4, save_adv=str(adv))
    whole = evaluate(**settings)
    counts, made = dict(work), images_of(adv)
    # The detector detects, and the attacks do something.
    assert whole['benign']['metrics'][MAP] > 0.3
    assert 8 < counts['attack'] <= 12
    shutil.rmtree(adv)
    work.clear()
    for owner, name, call, after, _ in PLACES:
        with pytest.raises(Interrupted), interruption(owner, name, call, after):
            evaluate(**settings)
    found = evaluate(**settings)
    assert found == whole
    images = images_of(adv)
    assert images.keys() == made.keys()
    assert all(np.array_equal(image, made[key]) for key, image in images.items())
    for kind, count in counts.items():
        # Two members work on an image before its record is written.
        assert count <= work[kind] <= count + 2 * sum(place[-1] for place in PLACES)
    assert not list(tmp_path.glob('*records*'))
    # A finished run begins anew.
    with pytest.raises(Interrupted), interruption(shutil, 'rmtree', 1):
        evaluate(**settings)
    assert evaluate(**settings) == whole
    assert not list(tmp_path.glob('*records*'))


def test_a_finished_run_starts_fresh_and_one_without_resume_keeps_nothing(
    evaluate, work, tmp_path
):
    first = evaluate(num_images=2)
    assert not list(tmp_path.glob('*records*'))
    assert work == dict(attack=2, predict=4)
    with pytest.raises(Interrupted), interruption(Attacker, 'attack', 2):
        evaluate(num_images=2, resume=False)
    assert not list(tmp_path.glob('*records*'))
    work.clear()
    assert evaluate(num_images=2, resume=False) == first
    assert work == dict(attack=2, predict=4)


def test_the_same_runner_goes_on(build_runner, trained, tmp_path, evaluate):
    """In a notebook: the metric still holds what the interrupted pass gave it."""
    runner = build_runner(
        load_from=str(trained),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop',
            attacks=dict(pgd=PGD),
            num_images=3,
            report=str(tmp_path / 'r.json'),
        ),
    )
    whole = dict(runner.test())
    assert whole[MAP] > 0.3
    with (
        pytest.raises(Interrupted),
        interruption(CocoMetric, 'compute_metrics', 2),
    ):
        runner.test()
    assert len(runner.test_evaluator.metrics[0].results) == 3
    assert dict(runner.test()) == whole


# ---------------------------------------------------------------- other kinds of models


def interrupt_twice(evaluate, *args):
    for name, call in (('predict', 4), ('attack', 3)):
        with pytest.raises(Interrupted), interruption(Attacker, name, call):
            evaluate(*args)


def test_masks(evaluate, coco, tmp_path):
    """Which are kept as run lengths; the metric writes them to a file."""
    torch.manual_seed(0)
    model = tiny.mask_rcnn()
    # A detector that has not learned anything finds something all the same.
    model['test_cfg']['rcnn'].update(score_thr=0.2, max_per_img=10)
    evaluator = dict(
        type='CocoMetric',
        ann_file=str(coco / 'annotations.json'),
        metric=['bbox', 'segm'],
        outfile_prefix=str(tmp_path / 'whole'),
    )
    overrides = dict(
        test_dataloader=tiny.loader(coco, test=True, masks=True, indices=3),
        test_evaluator=evaluator,
        load_from=str(checkpoint_of(model, tmp_path)),
    )
    attacks = dict(pgd=PGD, both=ENSEMBLE)
    whole = evaluate(attacks, overrides, model, report=str(tmp_path / 'whole.json'))
    evaluator['outfile_prefix'] = str(tmp_path / 'found')
    interrupt_twice(evaluate, attacks, overrides, model)
    assert len(list(tmp_path.rglob('*.record'))) == 3 + 2
    assert evaluate(attacks, overrides, model) == whole
    for end in ('segm', 'pgd.segm', 'both.segm', 'both.bbox'):
        masks = [
            json.loads((tmp_path / f'{name}.{end}.json').read_text())
            for name in ('whole', 'found')
        ]
        assert len(masks[0]) > 20
        assert masks[0] == masks[1]


def checkpoint_of(model, folder):
    """Weights that are the same for every runner."""
    from mmdet.registry import MODELS

    path = folder / 'weights.pth'
    built = MODELS.build(ConfigDict(model))
    built.init_weights()
    torch.save(dict(state_dict=built.state_dict()), path)
    return path


def test_classifiers(evaluate, tmp_path):
    """A record holds a whole batch; metrics need what heads write beside it."""
    from training.test_classifiers import runner_config
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    init_default_scope('mmpretrain')
    rng = np.random.default_rng(0)
    for label in range(3):
        place = tmp_path / 'test' / f'class{label}'
        place.mkdir(parents=True)
        for number in range(3):
            picture = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            cv2.imwrite(str(place / f'{number}.png'), picture)
    cfg = runner_config(tmp_path, tmp_path / 'cls').to_dict()
    model = MODELS.build(cfg['model'])
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'cls.pth')
    cfg.update(
        train_cfg=None,
        train_dataloader=None,
        optim_wrapper=None,
        custom_hooks=[],
        load_from=str(tmp_path / 'cls.pth'),
        test_evaluator=[
            dict(type='Accuracy', topk=(1,)),
            dict(type='SingleLabelMetric'),
        ],
    )
    cfg['test_dataloader']['batch_size'] = 2
    reports = []
    for name in ('whole', 'r'):
        cfg['test_cfg'] = dict(
            type='mmrobust.AttackTestLoop',
            attacks=dict(pgd=PGD, apgd=dict(type='mmrobust.APGD', num_steps=2)),
            report=str(tmp_path / f'{name}.json'),
        )
        for call in (3, 4, None) if name == 'r' else (None,):
            cfg['experiment_name'] = f'classifier_{name}_{call}'
            runner = Runner.from_cfg(Config(cfg))
            if call is None:
                runner.test()
                continue
            with pytest.raises(Interrupted), interruption(Attacker, 'attack', call):
                runner.test()
        reports.append(timeless(json.loads((tmp_path / f'{name}.json').read_text())))
    assert reports[0] == reports[1]
    assert reports[0]['attacks'][0]['cost']['images'] == 9


def test_images_without_ids(evaluate, coco, tmp_path):
    """Their records are found by the place in the loader, and checked by the image."""
    loader = tiny.loader(coco, test=True, indices=2)
    loader['dataset'] = dict(
        type='ConcatDataset', datasets=[loader['dataset'], dict(loader['dataset'])]
    )
    overrides = dict(
        test_dataloader=loader,
        test_evaluator=dict(type='VOCMetric', eval_mode='11points'),
    )
    attacks = dict(pgd=PGD)
    whole = evaluate(attacks, overrides, report=str(tmp_path / 'whole.json'))
    interrupt_twice(evaluate, attacks, overrides)
    found = evaluate(attacks, overrides)
    assert found == whole
    assert found['attacks'][0]['cost']['backwards'] == 4


def test_a_model_may_write_into_the_samples(evaluate, build_runner, trained):
    """Its predictions would look as if they had been there before."""
    settings = dict(attacks=dict(pgd=PGD), num_images=3)
    whole = evaluate(**settings)
    runner = build_runner(
        load_from=str(trained),
        test_cfg=dict(type='mmrobust.AttackTestLoop', **settings),
    )
    stock = runner.model.test_step

    def into_the_samples(data):
        for sample, output in zip(data['data_samples'], stock(data), strict=True):
            sample.pred_instances = output.pred_instances
        return data['data_samples']

    runner.model.test_step = into_the_samples
    metrics = runner.test()
    assert metrics[MAP] == whole['benign']['metrics'][MAP]
    assert metrics[f'pgd/{MAP}'] == whole['attacks'][0]['metrics'][MAP]


# ------------------------------------------------------------------- what has changed


@pytest.fixture
def broken_off(evaluate, coco, tmp_path):
    """A copy of the dataset on which an evaluation was interrupted."""
    root = tmp_path / 'data'
    shutil.copytree(coco, root)
    with pytest.raises(Interrupted), interruption(Attacker, 'attack', 4):
        evaluate(None, on(root))
    return root


def on(root, **dataset):
    """Overrides that put the test on another dataset."""
    evaluator = dict(type='CocoMetric', ann_file=str(root / 'annotations.json'))
    return dict(
        test_dataloader=tiny.loader(root, test=True, **dataset),
        test_evaluator=evaluator,
    )


def edit(root, change):
    path = root / 'annotations.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_changed_run_is_refused(evaluate, broken_off, trained, work, tmp_path):
    """With a sentence that names what has changed; nothing is computed."""

    def refused(wanted, *args, **kwargs):
        with pytest.raises(ConfigError) as caught:
            evaluate(*args, **kwargs)
        assert f'holds results of another run: {wanted}' in str(caught.value)
        assert str(tmp_path / 'r.records') in str(caught.value)

    same = on(broken_off)
    state = torch.load(trained, weights_only=False)
    state['state_dict']['bbox_head.conv_cls.bias'][0] += 1e-6
    torch.save(state, tmp_path / 'other.pth')
    other = dict(same, load_from=str(tmp_path / 'other.pth'))
    refused('weights_sha256 was', None, other)
    state['state_dict']['bbox_head.conv_cls.bias'][0] -= 1e-6
    model = tiny.fcos()
    model['test_cfg']['score_thr'] = 0.02
    refused('model.test_cfg.score_thr was 0.01 and is 0.02', None, same, model=model)
    refused('seed was 0 and is 1', None, same, seed=1)
    refused('annotations_sha256 was', None, same, num_images=3)
    refused("gt_frame was 'auto' and is 'input'", None, same, gt_frame='input')
    refused('fp16 was False and is True', None, same, fp16=True)
    smaller = on(broken_off, scale=(96, 72))
    refused('dataset.pipeline[1].scale[0] was 128 and is 96', None, smaller)
    edit(broken_off, lambda content: content['annotations'][0].update(bbox=[1] * 4))
    refused('annotations_sha256 was', None, same)
    assert not work


def test_any_change_of_an_annotation_is_noticed(coco, tmp_path):
    """The losses of Mask R-CNN read masks."""
    root = tmp_path / 'data'
    shutil.copytree(coco, root)

    def digest(root=root, **how):
        data = DATASETS.build(tiny.dataset(root, True, masks=True))
        return annotations_digest(data, **how)

    seen = [digest()]
    assert digest() == seen[0] != digest(coco)
    # Reports of two machines are of the same images.
    assert digest(folders=False) == digest(coco, folders=False)
    for change in (
        dict(category_id=lambda old: old % 3 + 1),
        dict(iscrowd=lambda old: 1),
        dict(segmentation=lambda old: [[0, 0, 9, 0, 9, 9]]),
        dict(bbox=lambda old: [old[0] + 1e-3, *old[1:]]),
    ):
        ((key, value),) = change.items()

        def one(content, key=key, value=value):
            content['annotations'][0][key] = value(content['annotations'][0][key])

        edit(root, one)
        seen.append(digest())
    edit(root, lambda content: content['images'][0].update(height=95))
    seen.append(digest())
    edit(root, lambda content: content['annotations'].pop())
    seen.append(digest())
    assert len(set(seen)) == 7


def test_a_changed_picture_is_worked_on_anew(evaluate, broken_off, work, tmp_path):
    """Alone: the others are as they were."""
    path = broken_off / 'images' / '001.png'
    picture = cv2.imread(str(path))
    picture[30:60, 30:60] = 255
    cv2.imwrite(str(path), picture)
    found = evaluate(None, on(broken_off))
    # Three of six images were on record, one of them is another one now.
    assert work == dict(attack=4, predict=5)
    assert found == evaluate(None, on(broken_off))


@ATTACKS.register_module(force=True)
class Shift(Attack):
    """Has a setting that its description does not name."""

    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def perturb(self, oracle, images, generator):
        """See :meth:`Attack.perturb`."""
        return [(image + self.by).clamp(0, 255) for image in images]


CHANGED = {
    'radius': (PGD, dict(PGD, eps=4)),
    'steps': (PGD, dict(PGD, num_steps=2)),
    'objective': (PGD, dict(PGD, objective='cls')),
    'choice': (PGD, dict(PGD, keep_best=False)),
    'own': (dict(type='mmrobust.Shift', by=2), dict(type='mmrobust.Shift', by=200)),
    'order': (
        ENSEMBLE,
        dict(ENSEMBLE, members=dict(reversed(list(ENSEMBLE['members'].items())))),
    ),
}


def test_changed_attacks_are_computed_anew(evaluate, work, tmp_path):
    """And the benign pass is not."""
    before, after = ({k: pair[i] for k, pair in CHANGED.items()} for i in (0, 1))
    settings = dict(num_images=2)
    fresh = evaluate(after, report=str(tmp_path / 'fresh.json'), **settings)
    whole = dict(work)
    with pytest.raises(Interrupted), interruption(AttackPass, '_score', len(CHANGED)):
        evaluate(before, **settings)
    work.clear()
    assert evaluate(after, **settings) == fresh
    assert work == dict(attack=whole['attack'], predict=whole['predict'] - 2)


def test_attacks_may_be_added(evaluate, work):
    with pytest.raises(Interrupted), interruption(AttackPass, '_score', 1):
        evaluate(dict(pgd=PGD), num_images=2)
    work.clear()
    evaluate(dict(more=dict(PGD, objective='cls'), pgd=PGD), num_images=2)
    assert work == dict(attack=2, predict=2)


# ------------------------------------------------------------------------ saved images


def test_saved_images_that_are_gone_are_made_again(evaluate, work, tmp_path):
    adv = tmp_path / 'adv'
    with pytest.raises(Interrupted), interruption(AttackPass, '_score', 2):
        evaluate(ATTACKS_OF_ALL, save_adv=str(adv))
    before = images_of(adv)
    (adv / 'pgd' / '11.npz').unlink()
    (adv / 'both' / 'total' / '12.png').unlink()
    work.clear()
    evaluate(ATTACKS_OF_ALL, save_adv=str(adv))
    members = sum(f'both/{member}/12' in before for member in ('total', 'cls'))
    assert work['attack'] == 1 + members
    assert (adv / 'both' / 'total' / '12.png').exists()
    after = images_of(adv)
    # What was chosen from the ensemble comes at its end.
    assert after.keys() == before.keys() | {f'both/{i}' for i in range(10, 16)}
    assert not list(adv.rglob('*tmp*'))
    assert all(np.array_equal(after[key], before[key]) for key in before)


def test_images_are_saved_although_the_first_run_did_not(evaluate, work, tmp_path):
    with pytest.raises(Interrupted), interruption(AttackPass, '_score', 1):
        evaluate(num_images=2)
    evaluate(num_images=2, save_adv=str(tmp_path / 'adv'))
    assert len(images_of(tmp_path / 'adv')) == 2
