"""The ensemble: at or below each of its members, whatever they are."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
import tiny
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.detectors import FCOS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmrobust.analysis import (
    Detections,
    match_detections,
    mean_ap,
    worst_case_intervals,
    worst_case_map,
)
from mmrobust.attacks import Attack, Ensemble
from mmrobust.attacks.ensemble import VERSIONS
from mmrobust.evaluation import attack_evaluation
from mmrobust.evaluation import ensemble as ensemble_module
from mmrobust.evaluation.attacker import Attacker
from mmrobust.evaluation.box_analysis import BoxAnalysis, ground_truth
from mmrobust.errors import ConfigError
from mmrobust.registry import ATTACKS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MAP = 'coco/bbox_mAP'


@ATTACKS.register_module(force=True)
class Only(Attack):
    """Grey noise on some images, nothing on the others.

    Or white images: the stored detector finds none of the objects there.
    """

    def __init__(self, ids=(), strength=60, white=False, **kwargs):
        super().__init__(**kwargs)
        self.ids, self.strength, self.white = list(ids), strength, white

    def perturb(self, oracle, images, generator):
        """See :meth:`Attack.perturb`."""
        (sample,) = oracle.samples
        if sample.img_id not in self.ids:
            return list(images)
        if self.white:
            return [torch.full_like(image, 255) for image in images]
        (own,) = generator
        return [
            (image + self.strength * torch.randn(image.shape, generator=own)).clamp(
                0, 255
            )
            for image in images
        ]

    def describe(self):
        """See :meth:`Attack.describe`."""
        own = dict(ids=self.ids, strength=self.strength, white=self.white)
        return {**super().describe(), **own}


def only(*ids, **settings):
    return dict(type='mmrobust.Only', ids=ids, **settings)


def pgd(**kwargs):
    return dict(type='mmrobust.PGD', num_steps=2, **kwargs)


def ensemble(members, **kwargs):
    return dict(type='mmrobust.Ensemble', **{'eps': 4, **kwargs}, members=members)


@pytest.fixture
def evaluate(build_runner, trained, tmp_path):
    """The report, and metrics as the runner gives them."""

    def run(attacks, overrides=None, **loop):
        runner = build_runner(
            **{
                'load_from': str(trained),
                'test_cfg': dict(
                    type='mmrobust.AttackTestLoop',
                    attacks=attacks,
                    report=str(tmp_path / 'r.json'),
                    **loop,
                ),
                **(overrides or {}),
            }
        )
        metrics = dict(runner.test())
        run.runner = runner
        return json.loads((tmp_path / 'r.json').read_text()), metrics

    return run


def attacks_of(report):
    return {attack['name']: attack for attack in report['attacks']}


def map_of(result):
    return result['boxes']['mAP']['estimate']


# Which images each member harms; 15 has no object, and 16 does not exist.
MEMBERS = {
    'each its own': dict(a=only(10, 13), b=only(11, 15), c=only(12, 14)),
    'none does anything': dict(a=only(), b=only(16)),
    'a good one and a bad one': dict(a=pgd(), b=dict(type='mmrobust.RandomNoise')),
    'one helps': dict(a=pgd(), b=only(10, 11, 12, 13, 14, 15, strength=3)),
}


@pytest.mark.parametrize('members', list(MEMBERS))
def test_never_above_a_member_nor_the_benign_figure(evaluate, members):
    """By the evaluator's own figure, each member running by itself, too."""
    each = {name: dict(m, eps=4) for name, m in MEMBERS[members].items()}
    report, metrics = evaluate({'all': ensemble(MEMBERS[members]), **each})
    found = attacks_of(report)
    assert metrics[MAP] > 0.6
    for name in each:
        assert metrics[f'all/{MAP}'] <= metrics[f'{name}/{MAP}']
        assert map_of(found['all']) <= map_of(found[name])
    assert metrics[f'all/{MAP}'] <= metrics[MAP]
    assert map_of(found['all']) <= map_of(report['benign'])
    if members == 'each its own':
        # None of the members comes near what they do together.
        assert metrics[f'all/{MAP}'] < min(metrics[f'{n}/{MAP}'] for n in each) - 0.1
    if members == 'none does anything':
        assert metrics[f'all/{MAP}'] == metrics[MAP]
    rows = found['all']['members']
    assert [row['name'] for row in rows] == list(each)
    figures = [row['mAP'] for row in rows]
    assert figures == sorted(figures, reverse=True)
    assert map_of(found['all']) <= figures[-1]
    for row in rows:
        assert row['mAP'] <= row['own_mAP']
        # A member that stood back has the example that broke the image.
        assert row['own_mAP'] <= map_of(found[row['name']]) + 1e-12
    assert sum(row['chosen'] for row in rows) <= 6


def test_it_is_what_its_members_are_together(evaluate, coco, tmp_path):
    """Members by themselves, combined by hand; and pycocotools on the choice."""
    members = dict(
        a=only(10, 12, strength=12),
        b=only(11, 12, 13, strength=6),
        c=only(14, 15, strength=12),
    )
    evaluator = dict(
        type='CocoMetric',
        ann_file=str(coco / 'annotations.json'),
        outfile_prefix=str(tmp_path / 'out'),
    )
    report, metrics = evaluate(
        {'all': ensemble(members), **{k: dict(m, eps=4) for k, m in members.items()}},
        dict(test_evaluator=evaluator),
        seed=3,
    )
    found = attacks_of(report)
    dataset = evaluate.runner.test_dataloader.dataset
    truths = ground_truth(dataset)

    def read(name):
        entries = {truth.img_id: [] for truth in truths}
        for entry in json.loads((tmp_path / f'out{name}.bbox.json').read_text()):
            entries[entry['image_id']].append(entry)
        return entries

    def detections(entries):
        return [
            Detections(
                key,
                np.array([[*e['bbox'][:2], *corner(e)] for e in each]).reshape(-1, 4),
                np.array([e['score'] for e in each]),
                np.array([e['category_id'] - 1 for e in each]),
            )
            for key, each in entries.items()
        ]

    def corner(entry):
        x, y, width, height = entry['bbox']
        return [x + width, y + height]

    passes = {name: read(f'.{name}' if name else '') for name in ('', *members)}
    tables = {
        name: match_detections(truths, detections(each), 3)
        for name, each in passes.items()
    }
    # No member broke an image entirely, so all of them ran on all images.
    assert all(row['images'] == 6 for row in found['all']['members'])
    worst = worst_case_map(list(tables.values()), seed=3, max_rounds=BoxAnalysis.rounds)
    assert map_of(found['all']) == pytest.approx(worst.mean_ap, abs=1e-9)
    chosen = Counter(list(passes)[index] for index in worst.assignment)
    for row in found['all']['members']:
        assert row['chosen'] == chosen[row['name']]
        expected = mean_ap(tables[row['name']])
        assert row['own_mAP'] == pytest.approx(expected, abs=1e-9)
    # Its interval knows of the choice.
    intervals = worst_case_intervals(list(tables.values()), worst.assignment, seed=3)
    for key, interval in zip(('mAP', 'drop'), intervals, strict=True):
        ours = found['all']['boxes'][key]
        ends = (interval.low, interval.high)
        assert (ours['low'], ours['high']) == pytest.approx(ends, abs=1e-6)
    ids = tables[''].img_ids
    taken = [
        entry
        for image, index in zip(ids, worst.assignment, strict=True)
        for entry in list(passes.values())[index][image]
    ]
    everything = read('.all')
    assert sorted(map(str, taken)) == sorted(
        str(entry) for each in everything.values() for entry in each
    )
    figure = coco_map(coco / 'annotations.json', taken)
    assert metrics[f'all/{MAP}'] == pytest.approx(figure, abs=5e-4)
    assert map_of(found['all']) == pytest.approx(figure, abs=1e-9)


def coco_map(annotations, entries):
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(entries), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def test_later_members_work_on_what_is_left(evaluate, monkeypatch):
    """An image of which nothing is detected any more is left alone."""
    seen = {}
    stock = Attacker.attack

    def noted(self, attack, part):
        name = str(attack.ids)
        seen.setdefault(name, []).append(part['data_samples'][0].img_id)
        return stock(self, attack, part)

    monkeypatch.setattr(Attacker, 'attack', noted)
    # Nothing is found on three of them.
    members = dict(a=only(10, 12, white=True), b=only(13, white=True), c=only(11, 14))
    report, metrics = evaluate({'all': ensemble(members)})
    left = [
        image for image in (10, 11, 12, 13, 14, 15) if image in seen.get('[11, 14]', [])
    ]
    assert seen['[10, 12]'] == [10, 11, 12, 13, 14, 15]
    assert seen['[13]'] == [11, 13, 14, 15]
    assert left == seen['[11, 14]'] == [11, 14, 15]
    (found,) = report['attacks']
    assert [row['images'] for row in found['members']] == [6, 4, 3]
    assert found['cost']['images'] == 6
    assert metrics[f'all/{MAP}'] < metrics[MAP]


def test_a_member_that_stood_back_may_be_chosen(evaluate, monkeypatch):
    """The search may start from a member on all images, also those it left alone."""
    stock = ensemble_module.WorstOf.search

    def last_on_all(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        self.assignment = np.full(6, 2)

    monkeypatch.setattr(ensemble_module.WorstOf, 'search', last_on_all)
    members = dict(a=only(10, 12, white=True), b=only(11))
    report, metrics = evaluate(
        {'all': ensemble(members), 'each': dict(only(10, 12, white=True), eps=4)}
    )
    found = attacks_of(report)
    a, b = found['all']['members']
    assert (a['images'], b['images']) == (6, 4)
    assert (a['chosen'], b['chosen']) == (2, 4)
    assert map_of(found['all']) < map_of(found['each'])
    assert metrics[f'all/{MAP}'] == pytest.approx(b['own_mAP'], abs=5e-4)


def test_saved_images_are_those_that_count(evaluate, tmp_path):
    """Of every image one, the clean one among them, also when it is done again."""
    members = dict(a=only(10, 12, strength=2000), b=only(11, strength=2000))
    attacks = {'all': ensemble(members)}
    for again in (False, True):
        evaluate(attacks, save_adv=str(tmp_path / 'adv'))
        folder = tmp_path / 'adv' / 'all'
        assert len(list(folder.glob('*.npz'))) == len(list(folder.glob('*.png'))) == 6
        assert not list(folder.rglob('*tmp*'))
        clean = {
            sample.img_id: image.numpy()
            for batch in evaluate.runner.test_dataloader
            for image, sample in zip(
                batch['inputs'], batch['data_samples'], strict=True
            )
        }
        for key, image in clean.items():
            member = {10: 'a', 12: 'a', 11: 'b'}.get(key)
            saved = np.load(folder / f'{key}.npz')['image']
            picture = cv2.imread(str(folder / f'{key}.png')).transpose(2, 0, 1)
            assert np.array_equal(picture, saved.round())
            if member:
                theirs = np.load(folder / member / f'{key}.npz')['image']
                assert np.array_equal(saved, theirs)
                assert np.abs(saved - image).max() > 100
            else:
                assert np.array_equal(saved, image)
        if again:
            break
        # Another choice, over files that two attacks have in common.
        attacks = {'all': ensemble(dict(members, a=only(12, strength=2000)))}
        evaluate(attacks, save_adv=str(tmp_path / 'adv'))
        for path in (folder / 'a').glob('*.png'):
            saved = np.load(path.with_suffix('.npz'))['image'].round()
            assert np.array_equal(cv2.imread(str(path)).transpose(2, 0, 1), saved)
        attacks = {'all': ensemble(members)}


@pytest.mark.parametrize(('norm', 'eps'), [('l2', 400), ('l1', 6000)])
def test_members_keep_to_the_ball_of_the_ensemble(evaluate, coco, tmp_path, norm, eps):
    members = dict(a=pgd(), b=dict(type='mmrobust.Square', num_queries=4))
    report, metrics = evaluate(
        {'all': ensemble(members, norm=norm, eps=eps)},
        dict(test_dataloader=tiny.loader(coco, test=True, indices=2)),
        save_adv=str(tmp_path / 'adv'),
    )
    assert (report['attacks'][0]['norm'], report['attacks'][0]['eps']) == (norm, eps)
    assert metrics[f'all/{MAP}'] <= metrics[MAP]
    for batch in evaluate.runner.test_dataloader:
        (image,), (sample,) = batch['inputs'], batch['data_samples']
        sizes = {}
        for name in ('', *members):
            path = tmp_path / 'adv' / 'all' / name / f'{sample.img_id}.npz'
            change = np.load(path)['image'].astype(np.float64) - image.numpy()
            sizes[name] = np.linalg.norm(change.ravel(), {'l2': 2, 'l1': 1}[norm])
            assert sizes[name] <= eps * (1 + 1e-5)
        assert sizes['a'] > 0.5 * eps


def test_costs_are_those_of_all_members(evaluate):
    """Also of examples that are not chosen."""
    report, _ = evaluate({'all': ensemble(dict(a=pgd(), b=only(), c=pgd()))})
    (found,) = report['attacks']
    rows = {row['name']: row for row in found['members']}
    # Two steps, the clean image and the last iterate.
    assert rows['a']['forwards'] == 4 * rows['a']['images'] == 24
    assert rows['a']['backwards'] == 2 * rows['a']['images']
    assert rows['c']['backwards'] == 2 * rows['c']['images']
    for key in ('forwards', 'backwards'):
        assert found['cost'][key] == sum(row[key] for row in rows.values())
    seconds = sum(row['seconds'] for row in rows.values())
    assert found['cost']['seconds'] == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize('version', list(VERSIONS))
def test_versions(version):
    """Their members are attacks of one threat model, in the order of the table."""
    found = Ensemble(norm='l2', eps='510/255', version=version)
    assert list(found.members) == list(VERSIONS[version])
    for member in found.members.values():
        assert (member.threat.norm, member.threat.eps) == ('l2', 510.0)
    assert found.describe()['version'] == found.describe()['objective'] == version
    assert Ensemble(version='fast', eps=8).threat.eps == 8


def test_larger_radii_in_l1_are_a_default():
    members = dict(
        default=dict(type='mmrobust.APGD'),
        own=dict(type='mmrobust.APGD', radius_schedule=[(1, 1)]),
    )
    found = Ensemble(norm='l1', eps=5000, members=members).members
    assert len(found['default'].radius_schedule) == 3
    assert len(found['own'].radius_schedule) == 1


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        (dict(version='slow'), "version 'slow' of the ensemble is unknown"),
        (dict(members={}), 'the ensemble has no members'),
        (
            dict(members={'x': dict(eps=4)}),
            "the member 'x' of the ensemble is no attack",
        ),
        (
            dict(members={'x': dict(type='mmrobust.Ensemble')}),
            "the member 'x' of the ensemble is no attack",
        ),
        (
            dict(members={'benign': dict(type='mmrobust.PGD')}),
            "can be called 'benign'",
        ),
        (dict(eps=-1), 'eps=-1 is negative'),
    ],
)
def test_impossible_settings(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Ensemble(**settings)


def test_a_validation_gives_the_same(build_runner, trained, evaluate, tmp_path):
    attacks = {'all': ensemble(dict(a=pgd(), b=only(10, 15)))}
    _, metrics = evaluate(attacks)
    before = sorted(tmp_path.rglob('*.json'))
    runner = build_runner(
        load_from=str(trained),
        val_cfg=dict(type='mmrobust.AttackValLoop', attacks=attacks),
    )
    runner.load_or_resume()
    assert dict(runner.val_loop.run()) == metrics
    # No report, and no records.
    assert sorted(tmp_path.rglob('*.json')) == before


# --------------------------------------------------------------- what it is not for


def test_classifiers_are_refused(tmp_path):
    from training.test_classifiers import runner_config

    init_default_scope('mmpretrain')
    place = tmp_path / 'test' / 'class0'
    place.mkdir(parents=True)
    cv2.imwrite(str(place / '0.png'), np.zeros((24, 24, 3), np.uint8))
    cfg = runner_config(
        tmp_path,
        tmp_path / 'work',
        train_cfg=None,
        train_dataloader=None,
        optim_wrapper=None,
        custom_hooks=[],
        test_cfg=dict(
            type='mmrobust.AttackTestLoop',
            attacks=dict(all=dict(type='mmrobust.Ensemble')),
        ),
    )
    with pytest.raises(ConfigError, match='use autoattack for a classifier'):
        Runner.from_cfg(cfg).test()


@pytest.mark.parametrize('kind', ['rotated', 'nothing', 'masks only'])
def test_models_without_upright_boxes_are_refused(evaluate, monkeypatch, kind):
    """Before any attack has been made."""

    def predict(self, part):
        outputs = [sample.clone() for sample in part['data_samples']]
        for output in outputs:
            found = InstanceData(scores=torch.ones(2), labels=torch.zeros(2).long())
            if kind == 'rotated':
                found.bboxes = torch.rand(2, 5)
            if kind == 'masks only':  # as SOLO
                found.bboxes = torch.zeros(2, 4)
                found.masks = torch.ones(2, *output.ori_shape[:2]).bool()
            if kind != 'nothing':
                output.pred_instances = found
        return outputs

    def attack(*args):
        raise AssertionError('it attacks')

    monkeypatch.setattr(Attacker, 'predict', predict)
    monkeypatch.setattr(Attacker, 'attack', attack)
    evaluator = dict(type='DumpResults', out_file_path='/dev/null.pkl')
    monkeypatch.setattr(
        'mmengine.evaluator.metric.DumpResults.compute_metrics', lambda *a: {}
    )
    with pytest.raises(ConfigError, match='the ensemble reads upright boxes'):
        evaluate({'all': ensemble(dict(a=pgd()))}, dict(test_evaluator=evaluator))


@pytest.mark.parametrize('kind', ['no id', 'twice'])
def test_images_without_ids_of_their_own_are_refused(evaluate, coco, monkeypatch, kind):
    """Before the benign pass."""

    def predict(*args):
        raise AssertionError('it predicts')

    monkeypatch.setattr(Attacker, 'predict', predict)
    loader = tiny.loader(coco, test=True)
    if kind == 'no id':
        pack = loader['dataset']['pipeline'][-1]
        pack['meta_keys'] = tuple(k for k in pack['meta_keys'] if k != 'img_id')
    else:
        loader['dataset'] = dict(
            type='ConcatDataset', datasets=[loader['dataset'], dict(loader['dataset'])]
        )
    with pytest.raises(ConfigError, match='the ensemble needs images with ids'):
        evaluate({'all': ensemble(dict(a=pgd()))}, dict(test_dataloader=loader))


def test_no_member_is_lost_because_the_model_failed(evaluate, monkeypatch):
    """An attack without it would be weaker, and nobody would look for the reason."""
    forward, calls = ResNet.forward, []

    def fails_once(self, x):
        calls.append(x)
        if len(calls) == 1:
            raise RuntimeError('a library was in a bad mood')
        return forward(self, x)

    monkeypatch.setattr(ResNet, 'forward', fails_once)
    with pytest.raises(RuntimeError, match='bad mood') as caught:
        evaluate(dict(all=dict(type='mmrobust.Ensemble', eps=4, version='fast')))
    assert caught.value.__notes__[0].startswith('while predicting on')
    assert len(calls) == 1


def test_ranking_does_without_predictions_that_have_no_gradient(evaluate, monkeypatch):
    predict = FCOS.predict

    def as_numbers(self, *args, **kwargs):
        found = predict(self, *args, **kwargs)
        for sample in found:
            scores = sample.pred_instances.scores
            sample.pred_instances.scores = torch.from_numpy(scores.numpy())
        return found

    monkeypatch.setattr(FCOS, 'predict', as_numbers)
    attack = dict(type='mmrobust.PGD', num_steps=1, objective='ranking')
    report, _ = evaluate(dict(ranking=attack))
    assert attacks_of(report)['ranking']['objective'] == 'ranking(assigned)'
    (sentence,) = [s for s in report['checks'] if 'has no gradient' in s]
    assert 'numpy' in sentence


@pytest.mark.parametrize('doubts', [[], ['the gradient of the loss is exactly 0']])
def test_members_without_gradients_run_where_gradients_are_doubtful(
    evaluate, monkeypatch, doubts
):
    monkeypatch.setattr(attack_evaluation, 'try_out', lambda *args: doubts)
    few = dict(type='mmrobust.APGD', num_steps=1)
    square = dict(type='mmrobust.Square', num_queries=1)
    members = {**dict.fromkeys(VERSIONS['standard-2'], few), 'square': square}
    monkeypatch.setitem(VERSIONS, 'standard-2', members)
    attacks = dict(all=dict(type='mmrobust.Ensemble', eps=4))
    report, _ = evaluate(attacks, check_images=1)
    names = [row['name'] for row in attacks_of(report)['all']['members']]
    assert ('square' in names) == bool(doubts)
    assert set(doubts) <= set(report['checks'])
