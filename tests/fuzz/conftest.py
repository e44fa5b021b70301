"""Which cases are run, and the project that they break."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import DefaultScope, init_default_scope

sys.path.insert(0, str(Path(__file__).parent))
import fuzz_project
from fuzz_draw import CASES, SHARES, draw_cases
from fuzz_harness import keep


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'case' in metafunc.fixturenames:
        option = metafunc.config.getoption
        cases = draw_cases(option('fuzz_cases') or CASES, option('fuzz_seed'))
        metafunc.parametrize('case', cases, ids=[case.name for case in cases])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many cases of which kind ended how; also of several processes."""
    counts: Counter[tuple[str, str]] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, ended in getattr(report, 'user_properties', ()):
                if name in SHARES and getattr(report, 'when', '') == 'call':
                    counts[name, ended] += 1
    for (kind, ended), count in sorted(counts.items()):
        terminalreporter.write_line(f'fuzz: {count:5} {kind} {ended}')


@pytest.fixture(scope='session')
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with DefaultScope.overwrite_default_scope('mmdet'):
        init_default_scope('mmdet')
        return keep(fuzz_project.build(tmp_path_factory.mktemp('project')))
