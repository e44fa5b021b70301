"""Which cases are run, and the project that they break."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest
from mmengine.registry import DefaultScope, init_default_scope

sys.path.insert(0, str(Path(__file__).parent))
import fuzz_commands
import fuzz_configs
import fuzz_data
import fuzz_project
from fuzz_case import Case
from fuzz_harness import keep

# Of a hundred cases.
SHARES = {'commands': 36, 'configs': 34, 'data': 18, 'checkpoints': 12}
DRAW = {
    'commands': fuzz_commands.draw,
    'configs': fuzz_configs.draw,
    'data': fuzz_data.draw,
    'checkpoints': fuzz_data.draw_checkpoint,
}


def draw_cases(count: int, seed: int) -> list[Case]:
    """Cases of all kinds; each depends on seed, kind and number alone."""
    return [
        draw(Random(f'{seed} {kind} {number}'), number)
        for kind, draw in DRAW.items()
        for number in range(count * SHARES[kind] // 100)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'case' in metafunc.fixturenames:
        option = metafunc.config.getoption
        cases = draw_cases(option('fuzz_cases'), option('fuzz_seed'))
        metafunc.parametrize('case', cases, ids=[case.name for case in cases])


@pytest.fixture(scope='session')
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with DefaultScope.overwrite_default_scope('mmdet'):
        init_default_scope('mmdet')
        return keep(fuzz_project.build(tmp_path_factory.mktemp('project')))
