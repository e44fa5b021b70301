"""The leaderboard, and claims that are verified."""

import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config
from mmrobust.analysis import read_tables, write_tables
from mmrobust.api import leaderboard, load, verify
from mmrobust.errors import ConfigError
from mmrobust.utils.files import file_sha256

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
PGD = dict(type='mmrobust.PGD', eps=4, num_steps=1)


def table_of(page, title):
    """The rows of a table, as texts."""
    section = page[page.index(f'<h2>{title}') :]
    rows = re.findall('<tr>(.*?)</tr>', section[: section.index('</table>')])[1:]
    return [re.findall('<t[hd][^>]*>(.*?)</t[hd]>', row) for row in rows]


def test_figures_that_can_be_compared_share_a_table(given, tmp_path):
    """The most robust first; what is no report, or not complete, is named."""
    for name, report in given[0].items():
        shutil.copytree(report.path.parent, tmp_path / name)
    other = json.loads((tmp_path / 'plain' / 'robustness.json').read_text())
    other['dataset']['num_images'] = 9
    (tmp_path / 'few').mkdir()
    (tmp_path / 'few' / 'robustness.json').write_text(json.dumps(other))
    (tmp_path / 'few' / 'notes.json').write_text('{}')
    (tmp_path / 'others').mkdir()
    other['dataset'].update(num_images=12, annotations_sha256='b' * 64)
    (tmp_path / 'others' / 'robustness.json').write_text(json.dumps(other))
    (tmp_path / 'open').mkdir()
    other['complete'] = False
    (tmp_path / 'open' / 'robustness.json').write_text(json.dumps(other))
    page = leaderboard(tmp_path)
    # Of as many images, but of others.
    assert page.count('<h2>a-eps2 (linf, eps 2), 12 images of x.json') == 2
    assert page.count('<h2>a-eps2 (linf, eps 2), 9 images of x.json') == 1
    rows = table_of(page, 'a-eps4 (linf, eps 4), 12 images of x.json')
    figures = {
        name: [r.figures_of(key)[1]['mAP']['estimate'] for key in ('benign', 'a-eps4')]
        for name, r in given[0].items()
    }
    expected = sorted(figures.items(), key=lambda pair: -pair[1][1])
    found = [(row[0], row[1], row[2]) for row in rows]
    assert found == [(n, f'{b:.3f}', f'{a:.3f}') for n, (b, a) in expected]
    assert 'is of an evaluation that has not ended' in page
    assert 'notes.json' not in page
    assert '<script>' in page
    with pytest.raises(ConfigError, match='no complete robustness report'):
        leaderboard(tmp_path / 'open')


def test_a_verification_is_shown_beside_its_report(given, tmp_path):
    report = given[0]['plain']
    shutil.copytree(report.path.parent, tmp_path / 'plain')
    passes = [
        dict(name='a-eps2', claimed=0.5, found=0.49),
        dict(name='a-eps4', claimed=0.5, found=0.3),
    ]
    content = dict(passes=passes, image_ids=[1, 2], tolerance=0.02)
    path = tmp_path / 'plain' / 'verification.json'
    digest = file_sha256(str(report.path))
    for sha256, cells in (
        (digest, ['holds on 2: 0.490 of 0.500', 'overstated on 2: 0.300 of 0.500']),
        ('0', ['of another report'] * 2),
    ):
        path.write_text(json.dumps({**content, 'report_sha256': sha256}))
        page = leaderboard(tmp_path)
        titles = ('a-eps2 (linf', 'a-eps4 (linf')
        assert [table_of(page, each)[0][-1] for each in titles] == cells


@pytest.fixture
def claim(evaluate, monkeypatch):
    """A report on the tiny images, and where it lies."""
    monkeypatch.undo()  # its config has to be text that can be read
    evaluate(dict(pgd=PGD))
    return load(evaluate.folder / 'r.json')


def test_a_claim_is_verified_on_some_of_its_images(claim, trained, tmp_path):
    found = verify(claim, trained, num_images=3, seed=1, work_dir=tmp_path / 'v')
    assert [each.name for each in found.passes] == ['benign', 'pgd']
    assert all(each.claimed == each.found for each in found.passes)
    assert found.passes[0].found > found.passes[1].found
    assert len(found.image_ids) == 3
    assert found.holds
    written = json.loads((tmp_path / 'v' / 'verification.json').read_text())
    assert written['holds']
    assert written['report_sha256'] == file_sha256(str(claim.path))


def test_a_claim_that_says_more(claim, trained, tmp_path, monkeypatch, capsys):
    """Of tables in which every detection hits under attack."""
    path = claim.path.with_suffix('.npz')
    tables = read_tables(path)
    write_tables(path, {**tables, 'pgd': replace(tables['benign'])})
    command = ['verify.py', str(claim.path), str(trained), '--num-images', '4']
    command += ['--work-dir', str(tmp_path / 'w')]
    monkeypatch.setattr(sys, 'argv', command)
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / 'verify.py'), run_name='__main__')
    assert ended.value.code == 3
    assert re.search(r'pgd: claimed .* overstated', capsys.readouterr().out)


def test_what_is_no_claim_on_these_weights(claim, trained, tmp_path, monkeypatch):
    asked = []

    def by_voc(*args, settings, work_dir):
        asked.append(settings['judged_by'])
        path = tmp_path / 'voc.json'
        path.write_text(json.dumps(claim.content))
        tables = read_tables(claim.path.with_suffix('.npz'))
        new = {name: replace(table, points=11) for name, table in tables.items()}
        write_tables(path.with_suffix('.npz'), new)
        return load(path)

    with monkeypatch.context() as patched:
        patched.setattr('mmrobust.api.verification.evaluate', by_voc)
        with pytest.raises(ConfigError, match=r'have 101 levels of recall .* ones 11'):
            verify(claim, trained)
    assert asked == ['bbox']
    other = tmp_path / 'other.pth'
    other.write_bytes(b'x')
    with pytest.raises(ConfigError, match='and the claim is about'):
        verify(claim, other)
    changed = {**claim.content, 'checkpoint_sha256': file_sha256(str(other))}
    path = tmp_path / 'c.json'
    path.write_text(json.dumps(changed))
    tables = read_tables(claim.path.with_suffix('.npz'))
    ids = tuple(each + 1000 for each in tables['benign'].img_ids)
    new = {name: replace(table, img_ids=ids) for name, table in tables.items()}
    write_tables(path.with_suffix('.npz'), new)
    with pytest.raises(ConfigError, match='the dataset has no image'):
        verify(load(path), other)
