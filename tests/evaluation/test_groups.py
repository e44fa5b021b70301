"""Evaluations whose images share the network's passes in attacks."""

import json

import pytest
import tiny
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from evaluated import attack_of, images_of
from mmrobust.evaluation.attacker import Attacker
from mmrobust.errors import ConfigError
from mmrobust.registry import ATTACKS
from mmrobust.attacks import PGD


@MODELS.register_module(force=True)
class OwnPreprocessor(DetDataPreprocessor):
    """What it does is not known."""


PGD1 = dict(type='mmrobust.PGD', eps=8, num_steps=1)
PGD2 = dict(PGD1, num_steps=2)
SQUARE = dict(type='mmrobust.Square', eps=8, num_queries=2)
MAP = 'coco/bbox_mAP'
# The images of one input shape among the six: three shapes, of which two are padded to
# the same.
GROUPS = [[10, 11, 13, 14], [12, 15]]


@pytest.fixture
def groups(monkeypatch):
    """The images that were attacked together, in their order."""
    found = []
    stock = Attacker.attack_together

    def noted(self, attack, parts):
        found.append([part['data_samples'][0].img_id for part in parts])
        return stock(self, attack, parts)

    monkeypatch.setattr(Attacker, 'attack_together', noted)
    return found


def test_figures_are_those_of_single_images(evaluate, groups, tmp_path):
    reports, images = [], []
    for size in (1, 4):
        folder = tmp_path / f'adv{size}'
        reports.append(
            evaluate(
                dict(pgd=PGD2, square=SQUARE),
                attack_batch_size=size,
                save_adv=str(folder),
            )
        )
        images.append(images_of(folder))
        if size == 1:
            assert not groups
    assert groups == GROUPS * 2
    alone, together = reports
    assert alone['environment']['attack_batch_size'] == 1
    assert together['environment']['attack_batch_size'] == 4
    assert alone['benign'] == together['benign']
    for name in ('pgd', 'square'):
        one, other = attack_of(alone, name), attack_of(together, name)
        for key in ('images', 'forwards', 'backwards', 'queries'):
            assert one['cost'][key] == other['cost'][key]
        figures = [each['metrics'][MAP] for each in (one, other)]
        if name == 'pgd':
            assert figures[0] < alone['benign']['metrics'][MAP]
            assert figures[1] == pytest.approx(figures[0], abs=0.02)
        else:  # rounding can turn searches, so they are made one by one
            assert figures[1] == figures[0]
    assert images[0].keys() == images[1].keys()
    assert len(images[0]) == 12
    for name, image in images[0].items():
        assert (abs(images[1][name] - image) < 0.01).mean() > 0.99


def test_groups_have_at_most_so_many_images(evaluate, groups):
    evaluate(dict(pgd=PGD1), attack_batch_size=3)
    assert groups == [[10, 11, 13], [12, 15]]  # and 14 by itself


def test_an_interrupted_evaluation_ends_in_the_same_figures(
    evaluate, groups, monkeypatch, tmp_path
):
    settings = dict(attacks=dict(pgd=PGD1), attack_batch_size=4)
    whole = evaluate(**settings)
    del groups[:]
    noted = Attacker.attack_together

    def interrupted(self, attack, parts):
        if groups:
            raise KeyboardInterrupt
        return noted(self, attack, parts)

    report = str(tmp_path / 'again.json')
    with monkeypatch.context() as patch:
        patch.setattr(Attacker, 'attack_together', interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(**settings, report=report)
    assert groups == GROUPS[:1]
    # A group of which a record is lost is attacked as a whole.
    (record,) = (tmp_path / 'again.records').glob('pgd-*/11.record')
    record.unlink()
    again = evaluate(**settings, report=report)
    assert groups == GROUPS[:1] + GROUPS
    assert attack_of(again, 'pgd')['metrics'] == attack_of(whole, 'pgd')['metrics']


def test_records_of_other_groups_do_not_count(evaluate, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Attacker, 'attack', stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(dict(pgd=PGD1))
    with pytest.raises(ConfigError, match='attack_batch_size'):
        evaluate(dict(pgd=PGD1), attack_batch_size=4)


@ATTACKS.register_module(force=True)
class Ruin(PGD):
    """Grey images where asked for, so that nothing is detected."""

    def __init__(self, ids=(), **kwargs):
        super().__init__(**kwargs)
        self.ids = list(ids)

    def perturb(self, oracle, images, generator):
        return [
            torch.full_like(image, 128) if sample.img_id in self.ids else image
            for image, sample in zip(images, oracle.samples, strict=True)
        ]


def test_a_broken_image_leaves_its_group(evaluate, groups):
    members = {
        'first': dict(type='Ruin', num_steps=1, ids=[11, 13, 14, 15]),
        'second': dict(type='mmrobust.PGD', num_steps=1),
    }
    ensemble = dict(type='mmrobust.Ensemble', eps=255, members=members)
    report = evaluate(dict(all=ensemble), attack_batch_size=4)
    # 10 by itself, and 15 as long as there is an image: it has nothing to lose.
    assert groups == [*GROUPS, GROUPS[1]]
    rows = attack_of(report, 'all')['members']
    assert [row['images'] for row in rows] == [6, 3]


def test_original_pixels_and_pictures_of_8_bits(evaluate, groups):
    reports = [
        attack_of(
            evaluate(
                dict(pgd=PGD1), attack_batch_size=size, space='original', quantize=True
            ),
            'pgd',
        )
        for size in (1, 4)
    ]
    assert groups == GROUPS
    for key in ('metrics', 'quantized'):
        found = [report[key] for report in reports]
        values = [(each.get('metrics') or each)[MAP] for each in found]
        assert values[1] == pytest.approx(values[0], abs=0.02)


def test_a_model_that_does_not_allow_it_is_attacked_image_by_image(evaluate, groups):
    preprocessor = dict(tiny.fcos()['data_preprocessor'], type='OwnPreprocessor')
    model = {**tiny.fcos(), 'data_preprocessor': preprocessor}
    report = evaluate(dict(pgd=PGD1), model=model, attack_batch_size=4)
    assert not groups
    assert report['environment']['attack_batch_size'] == 1
    (sentence,) = (text for text in report['checks'] if 'one by one' in text)
    assert 'OwnPreprocessor' in sentence


def test_a_built_loader_with_small_batches_is_refused(evaluate, coco):
    from mmengine.runner import Runner

    loader = Runner.build_dataloader(tiny.loader(coco, True))
    with pytest.raises(ConfigError, match='attack_batch_size=4'):
        evaluate(
            dict(pgd=PGD1), attack_batch_size=4, overrides=dict(test_dataloader=loader)
        )
    loader = Runner.build_dataloader(tiny.loader(coco, True, batch_size=4))
    report = evaluate(
        dict(pgd=PGD1), attack_batch_size=4, overrides=dict(test_dataloader=loader)
    )
    assert json.dumps(report['checks']).count('one by one') == 0


def test_averaged_gradients_are_the_same_and_counted(evaluate):
    """What draws nothing has the gradient of one draw, at the price of three."""
    one = PGD1
    attacks = dict(one=one, three=dict(one, eot=3))
    costs = []
    for size in (1, 2):
        overrides = dict(num_images=2, check_images=0, attack_batch_size=size)
        report = evaluate(attacks, **overrides)
        found, averaged = (attack_of(report, name) for name in attacks)
        assert (found['eot'], averaged['eot']) == (1, 3)
        assert averaged['metrics'][MAP] == pytest.approx(
            found['metrics'][MAP], abs=0.02
        )
        costs.append([found['cost'][k] for k in ('forwards', 'backwards')])
        costs.append([averaged['cost'][k] / 3 for k in ('forwards', 'backwards')])
    assert costs == [[6, 2]] * 4
