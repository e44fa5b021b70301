"""No mistake of a user's ends in a traceback, or leaves half a result behind.

A case can be repeated by its name: ``pytest tests/fuzz -k 'commands-17]'``. A longer
hunt: ``pytest tests/fuzz --fuzz-cases 5000 --fuzz-seed 1``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz_case import HERE, PROJECT, Case
from fuzz_draw import CASES, SHARES, draw_cases
from fuzz_harness import Outcome, complaints, ending, run

CONFIG, GOOD = f'{PROJECT}/config.py', f'{PROJECT}/good.pth'
SPACED = f'{PROJECT}/a folder/a config.py', f'{PROJECT}/a folder/a good.pth'
CLASSIFIER = f'{PROJECT}/classifier.py', f'{PROJECT}/classifier.pth'
FAST = ('--attack', 'pgd', '--num-steps', '1', '--num-images', '2')
WORK = ('--work-dir', f'{HERE}/a work dir')


def test_case(
    case: Case, project: Path, tmp_path: Path, record_property: Callable
) -> None:
    outcome = run(case, project, tmp_path)
    record_property(case.kind, ending(outcome))
    found = complaints(case, outcome, project, tmp_path)
    assert not found, '\n'.join([str(case), *found])


@pytest.mark.parametrize(
    ('tool', 'argv'),
    [
        ('train.py', (CONFIG, *WORK)),
        ('train.py', (SPACED[0], *WORK)),
        ('train.py', (CLASSIFIER[0], *WORK)),
        ('train.py', (f'{PROJECT}/standard.py', *WORK)),
        ('train.py', (f'{PROJECT}/standard.py', '--robust', 'pgd', '--dump', 'x.py')),
        ('test.py', (CONFIG, GOOD, *WORK)),
        ('test.py', (*SPACED, *FAST, *WORK)),
        ('test.py', (f'{PROJECT}/standard.py', GOOD, *WORK)),
        ('test.py', (*CLASSIFIER, *WORK)),
        (
            'convert_backbone.py',
            (f'{PROJECT}/resnet18.pth', 'x.pth', '--normalization', 'unit'),
        ),
        ('transfer_matrix.py', (f'a={CONFIG}:{GOOD}', '--num-images', '2', *WORK)),
    ],
)
def test_what_the_cases_break_is_whole(
    tool: str, argv: tuple[str, ...], project: Path, tmp_path: Path
) -> None:
    """Otherwise every case would fail for a reason of its own, and prove nothing."""
    case = Case('whole', tool, list(argv))
    outcome = run(case, project, tmp_path)
    assert outcome.status in (0, 'enough'), outcome.err + outcome.details
    assert not complaints(case, outcome, project, tmp_path)


def test_there_are_enough() -> None:
    cases = draw_cases(CASES, seed=0)
    kinds = Counter(case.kind for case in cases)
    assert set(kinds) == set(SHARES)
    assert sum(kinds.values()) >= 500
    assert len({case.name for case in cases}) == len(cases)


def test_a_case_is_its_seed_and_number() -> None:
    """However many others there are."""
    few, many, other = draw_cases(50, 3), draw_cases(100, 3), draw_cases(50, 4)
    described = {case.name: (case.tool, case.argv, case.files) for case in many}
    assert all(described[c.name] == (c.tool, c.argv, c.files) for c in few)
    same = [c.name for c in other if described[c.name] == (c.tool, c.argv, c.files)]
    assert len(same) < len(other) / 3  # damaged files, of which there are only so many


@pytest.mark.parametrize(
    ('status', 'err', 'complaint'),
    [
        ('traceback', '', 'ended with a traceback'),
        (1, '', 'ended with status 1'),
        (2, '', 'wrote 0 lines'),
        (2, 'warning\nerror: x is wrong.\n', 'wrote 2 lines'),
        (2, 'x is wrong.\n', 'does not begin'),
        (2, 'error: x is wrong\n', 'is no sentence'),
        (2, 'error: x is <object at 0x7f>.\n', "has 'object at 0x'"),
        (2, 'error: y is wrong.\n', 'names none of'),
        (2, 'error: ' + 'x is ' * 999 + '.\n', 'characters long'),
        (0, '', 'as if nothing were wrong'),
        (2, 'error: x is wrong.\n', None),
    ],
)
def test_the_judge(
    project: Path, tmp_path: Path, status: Any, err: str, complaint: str | None
) -> None:
    case = Case('judged', 'test.py', [], ('x is',), fails=True)
    found = complaints(case, Outcome(status, err, 0), project, tmp_path)
    assert bool(found) == (complaint is not None)
    assert complaint is None or complaint in found[0]


@pytest.mark.parametrize(
    ('name', 'content', 'complaint'),
    [
        ('a/report.json', '{"x": ', 'left a/report.json half written'),
        ('a/report.html', '<html>', 'left a/report.html half written'),
        ('a/x.pth', 'PK', 'left a/x.pth half written'),
        ('a/.report.json.abc', '', 'left a/.report.json.abc behind'),
        ('a/1.tmp', '', 'left a/1.tmp behind'),
        ('a/report.json', '{}', None),
        ('given/x.json', '{', None),
    ],
)
def test_the_judge_of_files(
    project: Path, tmp_path: Path, name: str, content: str, complaint: str | None
) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(content)
    found = complaints(Case('x', 'test.py', []), Outcome(0, '', 0), project, tmp_path)
    assert bool(found) == (complaint is not None)
    assert complaint is None or complaint in found[0]


def test_the_project_is_put_back(project: Path, tmp_path: Path) -> None:
    """Else one case would break all that follow."""
    before = (project / 'config.py').read_text()
    (project / 'config.py').write_text('{}')
    case, outcome = Case('x', 'test.py', []), Outcome(0, '', 0)
    assert complaints(case, outcome, project, tmp_path) == ['overwrote config.py']
    assert (project / 'config.py').read_text() == before
    assert not complaints(case, outcome, project, tmp_path)
