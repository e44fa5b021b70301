"""Reports beside each other."""

import copy
import csv
import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from mmrobust.analysis import difference_interval, read_tables
from mmrobust.api import Comparison, Report
from mmrobust.errors import ConfigError

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'compare.py'
FIELDS = ('image', 'label', 'score', 'hit', 'ignored', 'gt_image', 'gt_label')


def test_tables_come_back_as_they_were(given, tmp_path):
    _, matches = given
    found = read_tables(given[0]['plain'].path.with_suffix('.npz'))
    assert list(found) == list(matches['plain'])
    for name, table in matches['plain'].items():
        assert found[name].img_ids == table.img_ids
        assert found[name].num_classes == table.num_classes
        for field in FIELDS:
            old, new = (getattr(each, field) for each in (table, found[name]))
            assert old.dtype == new.dtype
            assert np.array_equal(old, new)
    (tmp_path / 'x.npz').write_bytes(b'x')
    for name, sentence in (('x.npz', 'holds no tables'), ('y.npz', 'does not exist')):
        with pytest.raises(ConfigError, match=sentence):
            read_tables(tmp_path / name)


def test_rows_say_what_the_tables_give(given):
    reports, matches = given
    comparison = Comparison(reports)
    assert [row.name for row in comparison.rows] == ['benign', 'a-eps2', 'a-eps4']
    for row in comparison.rows:
        pair = [matches[name][row.name] for name in ('plain', 'robust')]
        expected = difference_interval(pair[1], pair[0])
        first, other = row.differences
        assert first is None
        assert (other.value, other.low, other.high) == (
            *(expected.estimate, expected.low, expected.high),
        )
        plain, robust = (figure.value for figure in row.figures)
        assert robust - plain == pytest.approx(other.value)
        clean = comparison.rows[0].figures[0].value
        assert row.drops[0] == pytest.approx(clean - plain)
    assert comparison.rows[1].backwards == (5, 5)


def test_all_forms_have_the_figures(given, tmp_path):
    comparison = Comparison(given[0])
    text, page, table, latex = (p.read_text() for p in comparison.write(tmp_path))
    value = comparison.rows[2].figures[1].value
    lines = list(csv.DictReader(io.StringIO(table)))
    assert len(lines) == 6
    assert float(lines[-1]['figure']) == value
    assert lines[-1]['report'] == 'robust'
    for form in (text, page, latex):
        assert f'{value:.3f}' in form
    assert latex.startswith('\\begin{tabular}{lrr}\n\\toprule\n & plain & robust')
    assert page.count('<svg') == 1  # the curve
    assert '- robust: doubt of robust' in text


def test_without_detections_there_are_no_intervals(given, tmp_path):
    reports = dict(
        given[0], robust=Report(tmp_path / 'x.json', given[0]['robust'].content)
    )
    comparison = Comparison(reports)
    other = comparison.rows[1].differences[1]
    plain, robust = (figure.value for figure in comparison.rows[1].figures)
    assert (other.value, other.low) == (robust - plain, None)
    assert any(
        'x.npz is not beside the report of robust' in n for n in comparison.notes
    )


CHANGES = {
    'images': (
        lambda c: c['dataset'].update(num_images=9),
        'num_images of the dataset',
    ),
    'data': (lambda c: c['dataset'].update(ann_file='y'), 'ann_file of the dataset'),
    'choice': (
        lambda c: c['dataset'].update(annotations_sha256='b' * 64),
        'robust cannot be compared: the hash of the evaluated images and their objects '
        'is a{12} in the one and b{12} in',
    ),
    'eps': (lambda c: c['attacks'][0].update(eps=3.0), 'eps of a-eps2 is 2.0'),
    'steps': (lambda c: c['attacks'][1].update(num_steps=9), 'num_steps of a-eps4'),
    'space': (lambda c: c.update(space='original'), 'space is input in the one'),
    'names': (lambda c: [a.update(name='b') for a in c['attacks']], 'no attack in'),
}


@pytest.mark.parametrize(('change', 'sentence'), CHANGES.values(), ids=CHANGES)
def test_what_differs_is_refused(change, sentence, given, tmp_path):
    content = copy.deepcopy(given[0]['robust'].content)
    change(content)
    with pytest.raises(ConfigError, match=sentence):
        Comparison(dict(given[0], robust=Report(tmp_path / 'x.json', content)))


def test_ensembles_differ_by_their_version(given):
    reports = copy.deepcopy(given[0])
    for number, report in enumerate(reports.values(), 1):
        report.content['attacks'][0].update(
            members=[dict(name='x')], settings_of_x=number, objective='standard-2'
        )
    Comparison(reports)
    reports['plain'].content['attacks'][0]['objective'] = 'standard-1'
    with pytest.raises(ConfigError, match='version of a-eps2 is standard-1 in the one'):
        Comparison(reports)


def test_the_tool(given, tmp_path, monkeypatch, capsys):
    paths = [str(each.path) for each in given[0].values()]
    command = ['compare.py', f'one={paths[0]}', f'two={paths[1]}', '--out']
    monkeypatch.setattr(sys, 'argv', [*command, str(tmp_path / 'out')])
    runpy.run_path(str(TOOL), run_name='__main__')
    assert '| pass | one | two |' in capsys.readouterr().out
    assert len(list((tmp_path / 'out').iterdir())) == 4
    monkeypatch.setattr(sys, 'argv', ['compare.py', f'a={paths[0]}', f'a={paths[1]}'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL), run_name='__main__')
    assert "two reports are called 'a'" in capsys.readouterr().err


def test_a_worst_case_in_percent_without_interval():
    def report(value):
        key = 'coco_panoptic/PQ'
        return Report(
            'none.json',
            dict(
                judged_by='panoptic',
                dataset={},
                checks=[],
                benign=dict(metrics={key: 50.0}),
                attacks=[dict(name='a', metrics={key: 20.0}, checks=[])],
                worst_case=dict(PQ=value),
            ),
        )

    worst = Comparison(dict(a=report(10.0), b=report(15.0))).rows[-1]
    assert worst.name == 'worst'
    assert [(f.value, f.percent) for f in worst.figures] == [(10, True), (15, True)]
    assert worst.differences[1].value == 5
