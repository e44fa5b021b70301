"""mPC and rPC of passes on corrupted pictures, by hand, and what the report says."""

import sys
from pathlib import Path

import pytest
from mmrobust.corruptions import BENCHMARK, SEVERITIES
from mmrobust.report import AttackResult, summaries
from mmrobust.report.corruptions import mean_figures
from mmrobust.report.results import Headline
from mmrobust.report.verdict import verdict

sys.path.insert(0, str(Path(__file__).parent))
from made_up_report import attack, report

BENIGN = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.8}


def corrupted(corruption, severity, value, name=None, **settings):
    told = {'norm': None, 'eps': None, 'num_steps': None, 'objective': None}
    told = {**told, **settings, 'corruption': corruption, 'severity': severity}
    metrics = {'coco/bbox_mAP': value, 'coco/bbox_mAP_50': value + 0.1}
    return AttackResult(name or f'{corruption}-severity{severity}', told, metrics)


def test_means_by_hand():
    passes = [
        corrupted('fog', 1, 0.4),
        corrupted('fog', 5, 0.2),
        corrupted('snow', 1, 0.1),
        corrupted('contrast', 1, 0.5),
        corrupted('saturate', 1, 0.0),  # none of the benchmark
    ]
    (found,) = summaries(Headline(BENIGN, None), BENIGN, passes)
    mean = (0.3 + 0.1 + 0.5) / 3
    assert (found['P'], found['mPC']) == pytest.approx((0.5, mean))
    assert found['rPC'] == pytest.approx(mean / 0.5)
    second = found['metrics']['coco/bbox_mAP_50']
    assert second['rPC'] == pytest.approx((mean + 0.1) / 0.8)
    weather = found['groups']['weather']
    assert weather['mean'] == pytest.approx(0.2)
    assert weather['relative'] == pytest.approx(0.4)
    assert weather['worst'] == {'corruption': 'snow', 'severity': 1, 'value': 0.1}
    assert list(found['groups']) == ['weather', 'digital', 'extra']
    assert found['corruptions'] == ['snow', 'fog', 'contrast']
    assert found['severities'] == [1, 5]
    assert not found['benchmark']


def test_the_benchmark_and_attacks_on_it():
    alone = [corrupted(name, s, 0.4) for name in BENCHMARK for s in SEVERITIES]
    under = [
        corrupted('fog', s, 0.1 * s, f'pgd-fog-severity{s}', norm='linf', eps=4.0)
        for s in (1, 2)
    ]
    first, second = summaries(Headline(BENIGN, None), BENIGN, [*alone, *under])
    assert first['benchmark']
    assert first['attack'] is None
    assert second['attack'] == 'pgd'
    assert second['mPC'] == pytest.approx(0.15)
    assert summaries(Headline(BENIGN, None), BENIGN, [attack('pgd', 0.2)]) == []


def test_the_report_shows_them():
    made = report()
    made.attacks += [corrupted('fog', s, 0.45 - s / 10) for s in (1, 3)]
    made.attacks += [
        corrupted('fog', 1, 0.2, f'p-eps{e}-fog', norm='linf', eps=e, num_steps=5)
        for e in (2.0, 4.0)
    ]
    made.corruptions = summaries(made.headline(), made.benign, made.attacks)
    text = made.markdown()
    mean = (0.35 + 0.15) / 2
    assert (
        f'**mPC {mean:.3f}** on corrupted ones, rPC {100 * mean / 0.6:.1f} % of P'
        in text
    )
    assert '| fog | weather | 0.350 | 0.150 | 0.250 |' in text
    assert '| weather | 0.250 | 41.7 % | fog 3 | 0.150 |' in text
    assert 'not to be compared' in text
    assert '| fog-severity3 |  |  |  | fog 3 | 0.150 |' in text
    # A curve of an attack on fog begins with what fog leaves.
    (row,) = [line for line in text.splitlines() if line.startswith('| 0 (benign)')]
    assert row.endswith('| 0.350 |')
    labels = [bar.label for bar in made.bars()]
    assert 'corruptions (mPC)' in labels
    assert 'fog-severity1' not in labels
    assert 'corruptions (mPC)' in made.html()


def test_means_in_percent_stay_so():
    benign, passes = {'coco_panoptic/PQ': 50.0}, [corrupted('fog', 1, 0.0)]
    passes[0].metrics = {'coco_panoptic/PQ': 40.0}
    headline = Headline(benign, None)
    found = summaries(headline, benign, passes)
    ((_, figure),) = mean_figures(headline, found)
    assert figure.share == pytest.approx(0.4)
    assert '**40.00** on corrupted' in verdict(headline, passes, None, 0, found)
