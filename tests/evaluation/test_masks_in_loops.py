"""Masks beside boxes, and in their place, from the predictions to the report."""

from __future__ import annotations

import json

import mmrobust
import pytest
import tiny
import torch
from evaluated import attack_of
from mmdet.models.detectors import FCOS
from mmdet.registry import MODELS
from mmrobust.errors import ConfigError

MAP, MASK_MAP = 'coco/bbox_mAP', 'coco/segm_mAP'


@MODELS.register_module(force=True)
class Masked(FCOS):
    """Each detection is also a mask, the left nine tenths of its box.

    Args:
        bare: leaves the boxes at 0, as SOLO does.
    """

    def __init__(self, bare, **kwargs):
        super().__init__(**kwargs)
        self.bare = bare

    def predict(self, *args, **kwargs):
        """See :meth:`FCOS.predict`."""
        assert not self.bbox_head.training  # SOLO fails otherwise
        outputs = super().predict(*args, **kwargs)
        for output in outputs:
            found = output.pred_instances
            height, width = output.ori_shape[:2]
            x1, y1, x2, y2 = found.bboxes.round().T[:, :, None, None]
            x, y = torch.arange(width), torch.arange(height)[:, None]
            inside = (x >= x1) & (x < x1 + 0.9 * (x2 - x1)) & (y >= y1) & (y < y2)
            found.masks = inside
            if self.bare:
                found.bboxes = torch.zeros_like(found.bboxes)
        return outputs


def model(bare):
    return {**tiny.fcos(), 'type': 'Masked', 'bare': bare}


PGD = dict(type='mmrobust.PGD', eps=6, num_steps=1)
ATTACKS = dict(
    all=dict(
        type='mmrobust.Ensemble',
        eps=6,
        members=dict(
            a=dict(type='mmrobust.PGD', num_steps=1),
            b=dict(type='mmrobust.PGD', num_steps=1, objective='ranking'),
        ),
    ),
    a=PGD,
)


QUICK = dict(check_images=0, gallery=0, num_images=2)


def evaluator(coco, *kinds):
    ann_file = str(coco / 'annotations.json')
    return dict(
        test_evaluator=dict(type='CocoMetric', ann_file=ann_file, metric=list(kinds))
    )


def figure(entry, kind):
    return entry[kind]['mAP']['estimate']


def passes_of(report):
    return [report['benign'], *report['attacks']]


def test_masks_stand_beside_boxes(evaluate, coco, tmp_path):
    both = evaluate(
        ATTACKS, None, model(False), evaluator(coco, 'bbox', 'segm'), **QUICK
    )
    text = (tmp_path / 'r.md').read_text()
    for each in passes_of(both):
        for kind, name in (('boxes', MAP), ('masks', MASK_MAP)):
            assert figure(each, kind) == pytest.approx(each['metrics'][name], abs=5e-4)
        assert each['masks']['errors']['score_thr'] == 0.3
    assert both['judged_by'] == 'boxes'
    worst = both['worst_case_masks']
    lowest = min(figure(each, 'masks') for each in passes_of(both))
    assert worst['mAP'] <= lowest < figure(both['benign'], 'masks')
    assert set(worst['images']) == {'benign', 'all', 'all/a', 'all/b', 'a'}
    for title in ('## Boxes', '## Masks', '## By size of the objects (masks)'):
        assert title in text
    assert 'COCO mask mAP and its fall' in text


def test_masks_alone_are_what_an_ensemble_chooses_by(evaluate, coco, tmp_path):
    """For SOLO and its like, whose evaluators measure masks alone."""
    report = evaluate(ATTACKS, None, model(True), evaluator(coco, 'segm'), **QUICK)
    assert report['judged_by'] == 'masks'
    assert all('boxes' not in each for each in passes_of(report))
    assert not any('detects no boxes' in each for each in report['checks'])
    benign, whole, member = passes_of(report)
    for each in (benign, whole, member):
        assert figure(each, 'masks') == pytest.approx(
            each['metrics'][MASK_MAP], abs=5e-4
        )
    assert figure(whole, 'masks') <= figure(member, 'masks') < figure(benign, 'masks')
    rows = whole['members']
    assert rows[0]['own_mAP'] == pytest.approx(figure(member, 'masks'), abs=1e-12)
    assert rows[-1]['mAP'] >= figure(whole, 'masks')
    fall = figure(benign, 'masks') - figure(whole, 'masks')
    drop = whole['masks']['drop']
    assert drop['estimate'] == pytest.approx(fall, abs=1e-12)
    assert drop['low'] <= fall <= drop['high']
    assert report['worst_case']['mAP'] <= figure(whole, 'masks')
    # What reads reports reads masks.
    found = mmrobust.load(tmp_path / 'r.json')
    assert found.figures_of('all') == (whole['metrics'], whole['masks'])
    page = (tmp_path / 'r.html').read_text()
    assert 'mask mAP' in page
    # The members chosen by masks where boxes could not be read, by an argument.
    attacks = dict(all=ATTACKS['all'])
    again = evaluate(attacks, model=model(True), judged_by='segm', **QUICK)
    assert attack_of(again, 'all')['masks'] == whole['masks']


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        (dict(judged_by='mask'), "judged_by='mask' is unknown"),
        (dict(model=model(True)), r"set judged_by='segm' .*\(--judged-by segm\)"),
        (dict(judged_by='segm'), 'the ensemble reads masks, and the model gave none'),
    ],
)
def test_what_cannot_be_judged_is_named_before_any_attack(evaluate, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        evaluate(dict(all=ATTACKS['all']), **settings)


def test_objects_without_masks_are_named_before_any_pass(evaluate, coco):
    content = json.loads((coco / 'annotations.json').read_text())
    del content['annotations'][2]['segmentation']
    path = coco / 'without.json'
    path.write_text(json.dumps(content))
    loader = tiny.loader(coco, test=True)
    loader['dataset']['ann_file'] = path.name
    with pytest.raises(ConfigError, match=r'1 of the \d objects of image \d+ have no'):
        evaluate(dict(a=PGD), overrides=dict(test_dataloader=loader), judged_by='segm')
