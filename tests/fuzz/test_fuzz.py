"""No mistake of a user's ends in a traceback, or leaves half a result behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_case import HERE, PROJECT, Case
from fuzz_harness import complaints, run

CONFIG, GOOD = f'{PROJECT}/config.py', f'{PROJECT}/good.pth'
SPACED = f'{PROJECT}/a folder/a config.py', f'{PROJECT}/a folder/a good.pth'
CLASSIFIER = f'{PROJECT}/classifier.py', f'{PROJECT}/classifier.pth'
FAST = ('--attack', 'pgd', '--num-steps', '1', '--num-images', '2')
WORK = ('--work-dir', f'{HERE}/a work dir')


def test_case(case: Case, project: Path, tmp_path: Path) -> None:
    outcome = run(case, project, tmp_path)
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
