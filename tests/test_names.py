"""``names.json`` is what the classes say, and what ``--help`` needs instead of them."""

import ast
from pathlib import Path

from mmrobust import universal
from mmrobust.names import FILE, attack_names, collect, is_corruption, names


def test_the_file_is_what_the_classes_say():
    assert names() == collect(), f'python -m mmrobust.names writes {FILE.name} anew'


def test_kinds_of_names():
    assert {'noise', 'pgd', 'ensemble'} <= set(attack_names())
    assert is_corruption('fog')
    assert is_corruption('blur-corruptions')
    assert not any(map(is_corruption, attack_names()))


def test_the_tool_knows_the_attacks_of_what_it_fits():
    """It names them before torch is imported."""
    tool = Path(__file__).parents[1] / 'tools' / 'fit_universal.py'
    line = next(
        s for s in ast.parse(tool.read_text()).body if isinstance(s, ast.Assign)
    )
    assert ast.unparse(line.targets[0]) == '(PERTURBATION, PATCH)'
    assert ast.literal_eval(line.value) == (universal.PERTURBATION, universal.PATCH)
