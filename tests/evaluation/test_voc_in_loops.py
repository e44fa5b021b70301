"""An evaluator's own figure in place of COCO's mAP, from the metric to the report."""

from __future__ import annotations

from types import SimpleNamespace

import mmrobust
import numpy as np
import pytest
import tiny
from mmrobust.analysis import MatchTable, mean_ap
from mmrobust.evaluation.pass_tables import BENIGN
from mmrobust.evaluation.voc_figures import VOCFigures

VOC = 'pascal_voc/mAP'
PGD = dict(type='mmrobust.PGD', eps=6, num_steps=1)
ATTACKS = dict(
    pgd=PGD,
    cls=dict(PGD, objective='cls'),
)
SETTINGS = dict(check_images=0, gallery=0)


def overrides(coco):
    return dict(
        # Half the size: boxes in the wrong frame would show.
        test_dataloader=tiny.loader(coco, test=True, scale=(96, 72)),
        test_evaluator=dict(
            type='VOCMetric', eval_mode='11points', iou_thrs=[0.5, 0.7]
        ),
    )


def test_passes_are_compared_by_vocs_map(evaluate, coco, tmp_path):
    annotations = f'{coco / "annotations.json"},{coco / "images"}'
    report = evaluate(
        ATTACKS, None, None, overrides(coco), shifts={'same': annotations}, **SETTINGS
    )
    assert report['judged_by'] == 'evaluator'
    benign, passes = report['benign'], report['attacks']
    value = benign['metrics'][VOC]
    assert value > 0.2
    assert benign['evaluator']['means'].startswith("VOC's AP at IoU 0.5, 0.7 over 11")
    for each in (benign, *passes, *report['shifts']):
        interval = each['evaluator']['mAP']
        assert interval['estimate'] == each['metrics'][VOC]
        assert interval['low'] < interval['high']
    # The intervals' own matches give what the metric gives.
    assert not any('do not trust it' in text for text in report['checks'])
    for each in passes:
        fall = each['evaluator']['drop']['estimate']
        assert fall == pytest.approx(value - each['metrics'][VOC], abs=1e-6)
    worst = report['worst_case']
    assert worst['mAP'] <= min(p['metrics'][VOC] for p in passes) + 1e-6
    assert sum(worst['images'].values()) == 6
    assert report['worst_case_boxes']['mAP'] != worst['mAP']
    # What reads reports reads the same.
    found = mmrobust.load(tmp_path / 'r.json')
    assert found.figure == f'{VOC}: {benign["evaluator"]["means"]}'
    assert found.rows()[0]['mAP_low'] == benign['evaluator']['mAP']['low']
    page = (tmp_path / 'r.html').read_text()
    assert f'<small>{VOC}, no attack</small>' in page
    assert f'<small>{VOC}, worst case</small>' in page
    assert f'Of {VOC} {value:.3f}, ' in (tmp_path / 'r.md').read_text()
    # And COCO's again, where it is asked for.
    again = evaluate(
        dict(pgd=PGD),
        None,
        None,
        overrides(coco),
        judged_by='bbox',
        num_images=1,
        **SETTINGS,
    )
    assert again['judged_by'] == 'boxes'
    assert 'evaluator' not in again['benign']


def test_matches_that_give_another_figure_than_the_metric():
    metric = SimpleNamespace(prefix='voc', iou_thrs=[0.5], eval_mode='area')
    dataset = type('Data', (list,), {'metainfo': {'classes': ['a']}})([0, 1, 2])
    dataset.get_data_info = lambda index: {'img_id': index}
    found = VOCFigures(metric, dataset, seed=0)
    rows, zeros = np.arange(3), np.zeros(3, int)
    hit = np.array([[True, False, True]])
    found._table = MatchTable(
        *((0, 1, 2), 1, rows, zeros, 1 - rows / 10, hit, ~(hit | ~hit), rows, zeros),
        points=0,
    )
    # Precision 1 to a third of recall, and 2 of 3 to the next one.
    assert mean_ap(found._table) == pytest.approx((1 + 2 / 3) / 3)
    assert found.finish(BENIGN, {'voc/mAP': 0.556}, keep=True)['mAP']['low'] <= 0.556
    assert found.problems == []
    found.finish('pgd', {'voc/mAP': 0.7}, keep=False)
    (problem,) = found.problems
    assert problem.startswith('voc/mAP of pgd is 0.700, and its interval')
    assert 'that give 0.556' in problem
