"""mmrobust.evaluate and mmrobust.load: the report of a detector, from Python."""

import json

import mmrobust
import pytest
import stored
import tiny
from evaluated import attack_of
from mmengine.config import Config
from mmrobust.errors import ConfigError

PGD = dict(type='mmrobust.PGD', eps=4, num_steps=2)


@pytest.fixture
def cfg(coco, tmp_path):
    return Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))


def figures(report):
    return [report.benign, {name: a['metrics'] for name, a in report.attacks.items()}]


def test_figures_are_those_of_the_test_loop(cfg, evaluate, trained, tmp_path):
    """By a config and a checkpoint, and by the detector itself."""
    expected = evaluate(dict(pgd=PGD), num_images=3)
    by_config = mmrobust.evaluate(
        cfg, trained, ['pgd'], num_images=3, eps=4, num_steps=2, work_dir=tmp_path / 'a'
    )
    wanted = expected['benign']['metrics']
    assert figures(by_config) == [
        wanted,
        {'pgd': attack_of(expected, 'pgd')['metrics']},
    ]
    assert wanted['coco/bbox_mAP'] > 0.5
    model = stored.detector('fcos')
    model.cfg = cfg
    by_model = mmrobust.evaluate(
        model, attacks=dict(pgd=PGD), num_images=3, work_dir=tmp_path / 'b'
    )
    assert figures(by_model) == figures(by_config)


def test_corruptions_have_the_names_of_the_command_line(cfg, trained, tmp_path):
    given = dict(
        attacks=['noise', 'weather-corruptions'], severity=[2, 3], num_images=1
    )
    report = mmrobust.evaluate(cfg, trained, work_dir=tmp_path / 'w', **given)
    names = ('snow', 'frost', 'fog', 'brightness')
    labels = {f'{name}-severity{number}' for name in names for number in (2, 3)}
    assert {*report.attacks} == {'noise', *labels}


@pytest.fixture
def written(tmp_path):
    """A report with every field that is read."""
    interval = dict(estimate=0.25, low=0.125, high=0.5)
    content = dict(
        complete=True,
        checks=['a'],
        benign=dict(metrics={'coco/bbox_mAP': 0.5}, boxes=None),
        attacks=[
            dict(
                name='pgd',
                eps=4.0,
                norm='linf',
                num_steps=2,
                objective='total',
                metrics={'coco/bbox_mAP': 0.25},
                boxes=dict(mAP=interval),
                checks=['b'],
            )
        ],
    )
    path = tmp_path / 'robustness.json'
    path.write_text(json.dumps(content))
    path.with_suffix('.md').write_text('twin')
    path.with_suffix('.npz').write_text('tables')
    return path


def test_a_report_is_read(written, tmp_path):
    report = mmrobust.load(tmp_path)
    assert report.checks == ['a', 'pgd: b']
    benign, pgd = report.rows()
    assert benign['coco/bbox_mAP'] == 0.5
    found = [pgd[key] for key in ('attack', 'eps', 'mAP', 'mAP_low', 'mAP_high')]
    assert found == ['pgd', 4, 0.25, 0.125, 0.5]
    assert report.table().splitlines()[3].startswith('| pgd | linf | 4.000 | 2 | total')
    assert report._repr_html_().count('<tr>') == 3
    report.save(tmp_path / 'x' / 'copy.json')
    assert mmrobust.load(tmp_path / 'x' / 'copy.json').content == report.content
    assert (tmp_path / 'x' / 'copy.md').read_text() == 'twin'
    assert (tmp_path / 'x' / 'copy.npz').read_text() == 'tables'
    report.save(written)


def test_reports_that_are_none(written, tmp_path):
    with pytest.raises(ConfigError, match='does not exist'):
        mmrobust.load(tmp_path / 'x.json')
    for text in ('{}', '{"complete": true, "benign": 3, "attacks": 5}'):
        (tmp_path / 'y.json').write_text(text)
        with pytest.raises(ConfigError, match='is no robustness report'):
            mmrobust.load(tmp_path / 'y.json')
    written.write_text(written.read_text().replace('true', 'false'))
    with pytest.raises(ConfigError, match='has not ended'):
        mmrobust.load(written)


MISTAKES = {
    'no checkpoint': ({}, 'give the checkpoint'),
    'no file': (dict(checkpoint='x.pth'), 'x.pth'),
    'option': (dict(checkpoint=0, rho=1), 'rho is no setting of noise or pgd'),
    'nothing': (dict(checkpoint=0, attacks=[]), 'attacks is empty'),
    'severity': (dict(checkpoint=0, attacks=['fog'], severity=[6]), 'severity'),
    'settings of configs': (dict(checkpoint=0, attacks={}, eps=2), 'eps belong to'),
}


@pytest.mark.parametrize(('given', 'sentence'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_sentences(given, sentence, cfg, trained, tmp_path):
    if given.get('checkpoint') == 0:
        given = {**given, 'checkpoint': trained}
    with pytest.raises(ConfigError, match=sentence):
        mmrobust.evaluate(cfg, work_dir=tmp_path, **given)
