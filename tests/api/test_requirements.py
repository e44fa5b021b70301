"""Requirements on the figures of a report."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmrobust.api import Report, Requirement, check
from mmrobust.errors import ConfigError

TEST = Path(__file__).resolve().parents[2] / 'tools' / 'test.py'
METRICS = {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5, 'coco/bbox_mAP_s': -1.0}
REPORT = Report(
    'x.json',
    dict(
        benign=dict(metrics={**METRICS, 'coco/bbox_mAP': 0.5}),
        attacks=[
            # As it is compared: the analysis has more digits than the metric.
            dict(name='pgd', metrics=METRICS, boxes=dict(mAP=dict(estimate=0.254))),
            dict(name='lost', metrics={'coco/bbox_mAP': None}),
        ],
        worst_case=dict(mAP=0.125),
    ),
)


@pytest.mark.parametrize(
    ('text', 'missed'),
    [
        ('pgd>=0.254', None),
        ('pgd >= 0.255', 'pgd is 0.254, and >= 0.255 was required'),
        ('benign>=0.5', None),
        ('benign<=0.49', 'benign is 0.5, and <= 0.49 was required'),
        ('worst>=.2', 'worst is 0.125, and >= 0.2 was required'),
        ('pgd:coco/bbox_mAP_50>=0.5', None),
        ('pgd:coco/bbox_mAP>=0.251', 'pgd:coco/bbox_mAP is 0.25, and >= 0.251'),
        ('lost>=0', 'lost has no figure'),
        ('lost<=1', 'lost has no figure'),
    ],
)
def test_figures_are_compared(text, missed):
    found = check(REPORT, [Requirement.read(text)])
    assert (found == []) == (missed is None)
    assert not missed or found[0].startswith(missed)


@pytest.mark.parametrize(
    'text', ['pgd', 'pgd>0.2', 'pgd>=x', 'pgd>=nan', '>=0.2', 'pgd==0.2', '']
)
def test_requirements_that_are_none(text):
    with pytest.raises(ConfigError, match='cannot be read'):
        Requirement.read(text)


def test_names_that_are_not_there():
    with pytest.raises(ConfigError, match=r"no such pass.*did you mean 'pgd'"):
        Requirement.read('pgdd>=0').missed(REPORT)
    with pytest.raises(ConfigError, match='has no metric'):
        Requirement.read('pgd:coco/AP>=0').missed(REPORT)
    with pytest.raises(ConfigError, match="'worst'"):
        Requirement.read('worst>=0').check_name(['pgd'])


@pytest.mark.parametrize(('bound', 'status'), [(0, None), (2, 3)])
def test_the_tool_ends_with_status_3(
    bound, status, project, monkeypatch, tmp_path, capsys
):
    """After the report is written, so that it can be looked at."""
    arguments = [
        'config.py',
        'good.pth',
        '--attack',
        'noise',
        '--num-images',
        '3',
    ]
    arguments += ['--check-images', '0', '--work-dir', str(tmp_path)]
    monkeypatch.chdir(project)
    wanted = [f'noise>={bound}', 'benign>=-1']
    monkeypatch.setattr(sys, 'argv', ['test.py', *arguments, '--require', *wanted])
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    if status:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TEST), run_name='__main__')
        assert ended.value.code == status
        assert 'and >= 2 was required' in capsys.readouterr().err
    else:
        runpy.run_path(str(TEST), run_name='__main__')
    assert json.loads((tmp_path / 'robustness.json').read_text())['complete']


def test_boxes_stand_for_an_evaluators_worst_case_alone():
    content = {**REPORT.content, 'worst_case': None}
    content['worst_case_boxes'] = dict(mAP=0.125)
    bound = [Requirement.read('worst>=0.2')]
    (found,) = check(Report('x.json', {**content, 'judged_by': 'evaluator'}), bound)
    assert found.startswith("worst by COCO's mAP of boxes is 0.125, and >= 0.2")
    for judged_by in ('masks', 'panoptic'):
        report = Report('x.json', {**content, 'judged_by': judged_by})
        assert check(report, bound) == ['worst has no figure']
