"""benchmarks.cost: every figure is of the side that it says, and the rules hold."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.config import Config
from benchmarks import cost
from benchmarks.cost import (
    FREE,
    OFFICIAL,
    STOCK,
    WITH_GRADIENT,
    attack_sides,
    free_sides,
    inner_sides,
)
from benchmarks.subject import Subject
from benchmarks.timing import (
    Clock,
    Side,
    Table,
    alternate,
    compare,
    judge,
    peak_bytes,
)
from mmrobust.errors import ConfigError
from mmrobust.objective import loss_mode

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIER = ROOT / 'configs/demo/robust_classifier.py'


@pytest.fixture
def config(coco, tmp_path):
    """A config of a tiny FCOS with data."""
    path = tmp_path / 'fcos.py'
    settings = tiny.runner_config(coco, tmp_path, tiny.fcos())
    path.write_text('\n'.join(f'{k} = {v!r}' for k, v in settings.items()))
    return path


@pytest.fixture
def subject(config):
    return Subject(Config.fromfile(config), 'cpu', (64, 96), 2)


# ------------------------------------------------------------------ what the sides do


def watched(subject, run):
    """Of every forward pass: images, input gradient, weight gradient, training."""
    seen = []

    def note(module, args):
        learns = subject.model.bbox_head.conv_cls.weight.requires_grad
        gradients = torch.is_grad_enabled()
        seen.append(
            (
                len(args[0]),
                gradients and args[0].requires_grad,
                gradients and learns,
                module.norm1.training,
            )
        )

    handle = subject.model.backbone.register_forward_pre_hook(note)
    run()
    handle.remove()
    return seen


def test_sides_of_freeat_make_the_passes_that_they_say(subject):
    sides = {side.name: side for side in free_sides(subject)}
    assert list(sides) == [STOCK, WITH_GRADIENT, FREE, OFFICIAL]
    seen = {name: watched(subject, side.run) for name, side in sides.items()}
    assert seen[STOCK] == [(2, False, True, True)]
    assert (
        seen[WITH_GRADIENT] == seen[FREE] == seen[OFFICIAL] == [(2, True, True, True)]
    )
    # Of the two backward passes of the last one, one stops at the image.
    reached = []
    first = subject.model.backbone.conv1
    handle = first.register_full_backward_hook(lambda *_: reached.append(1))
    for side in sides.values():
        reached.append(0)
        side.run()
    handle.remove()
    assert reached == [0, 1, 0, 1, 0, 1, 0, 1, 1]
    assert sides[FREE].passes == sides[OFFICIAL].passes == WITH_GRADIENT


def test_passes_of_methods_are_theirs(subject):
    """Passes alone and update: as many, of as many images, in the same modes."""
    sides = {side.name: side for side in inner_sides(subject)}
    gradient, update = (2, True, False, False), (2, False, True, True)
    free = (2, True, True, True)
    value, apart = (2, False, False, False), (1, False, False, False)
    expected = {
        'PGD-AT, 2 steps': [gradient] * 2 + [update],
        'APGD-AT, 2 steps': [gradient] * 2 + [value, update],
        'CWAT, 1 step': [gradient, update],
        'MTD, 1 step': [gradient] * 2 + [apart] * 4 + [update],
        'PBCAT': [gradient, free],
        'FreeAT with AWP': [update, free],
    }
    assert len(sides) == 1 + 2 * len(expected)
    for name, passes in expected.items():
        assert watched(subject, sides[f'passes of {name}'].run) == passes
        assert watched(subject, sides[f'update of {name}'].run) == passes
        assert sides[f'update of {name}'].passes == f'passes of {name}'


def test_attacks_make_as_many_passes_as_the_bare_side(subject):
    with loss_mode(subject.model):
        for side in attack_sides(subject):
            assert side.images == 1
            expected = [(1, True, False, False)] * side.steps
            assert watched(subject, side.run) == expected
    assert side.steps == 10


def test_nothing_is_learnt(subject):
    """All sides see the same weights."""
    before = deepcopy(dict(subject.model.named_parameters()))
    weight = subject.model.bbox_head.conv_cls.weight
    for side in [*free_sides(subject), *inner_sides(subject)]:
        side.run()
    for name, value in subject.model.named_parameters():
        assert torch.equal(value, before[name])
    # And yet the optimizer worked.
    momentum = subject.wrapper.optimizer.state[weight]['momentum_buffer']
    assert momentum.abs().sum() > 0


# ----------------------------------------------------------------------- the figures


class FakeClock(Clock):
    """Goes on by what the sides say that they take."""

    def __init__(self):
        super().__init__('cpu')
        self.time, self.order = 0.0, ''

    def side(self, name, *seconds, **settings):
        # The first one is the call that warms up.
        durations = iter([100.0, *seconds])

        def run():
            self.time += next(durations)
            self.order += name

        return Side(name, run, **{'images': 6, **settings})

    def now(self):
        return self.time


def test_figures_are_medians_of_ratios_within_turns():
    clock = FakeClock()
    sides = [
        clock.side('a', 1, 2, 4),
        clock.side('b', 3, 2, 8, passes='a', limit=2.5),
        clock.side('c', 4, 4, 40, passes='b', limit=1.9, steps=2),
    ]
    table = compare('t', sides, clock, repeats=3)
    assert clock.order == 'abc' + 'abc' + 'cba' + 'abc'
    a, b, c = table.rows
    assert [row['milliseconds'] for row in table.rows] == [2000, 3000, 2000]
    assert [row['images_per_second'] for row in table.rows] == [3, 2, 3]
    assert [row['ratio'] for row in table.rows] == [1, 2, 2]  # of 3 1 2, of 2 1 5
    assert 'ratio_to_passes' not in a
    assert b['ratio_to_passes'] == 2
    assert c['ratio_to_passes'] == 1  # of 2/3, 1, 20/8
    assert c['seconds'] == [2, 2, 20]
    assert [row.get('passed') for row in table.rows] == [None, True, True]
    assert '≤ 2.5 of its passes: pass' in table.markdown()


@pytest.mark.parametrize(
    ('bare', 'stock', 'to_bare', 'passed'),
    [
        (1.10, 1.15, 1.05, True),  # the stock update decides
        (1.14, 1.16, 1.02, False),
        (1.20, 1.23, 1.025, True),  # the passes alone are above it
        (1.20, 1.25, 1.04, False),
    ],
)
def test_limits_of_freeat(subject, bare, stock, to_bare, passed):
    (side,) = (each for each in free_sides(subject) if each.name == FREE)
    row = {'what': FREE, 'ratio': stock, 'ratio_to_passes': to_bare}
    judge(side, row, bare)
    assert row['passed'] is passed
    assert row['verdict'].endswith('pass' if passed else 'FAIL')
    assert Table('', {'what': ''}, [row]).failures == ([] if passed else [FREE])


def test_sides_that_the_model_is_not_for_are_left_out_with_a_note():
    clock = FakeClock()

    def refuse():
        raise ConfigError('no boxes here.')

    sides = [clock.side('a', 1), Side('b', refuse, 1), clock.side('c', 1, passes='b')]
    table = compare('t', sides, clock, repeats=1)
    assert [row['what'] for row in table.rows] == ['a', 'c']
    assert 'Without b: no boxes here.' in table.markdown()


def test_time_of_one_process_is_not_asked_of_a_gpu():
    with pytest.raises(ConfigError, match='--clock wall'):
        Clock('cuda', 'cpu')
    clock = Clock('cpu', 'cpu')
    assert (
        alternate([Side('sum', lambda: sum(range(10**5)), 1)], clock, 1)['sum'][0] > 0
    )


def test_peak_of_memory_is_counted_in_bytes():
    kilobyte = 256

    def run():
        first = torch.empty(100 * kilobyte)
        second = torch.empty(50 * kilobyte)
        del first
        third = torch.empty(20 * kilobyte)
        del second, third
        torch.empty(140 * kilobyte)

    assert peak_bytes(run, torch.device('cpu')) == 150 * 1024


# ---------------------------------------------------------------------- the tool


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, args)])
    cost.main()


def test_a_detector_with_its_data(config, tmp_path, monkeypatch, capsys):
    # Of the methods with an inner attack one; all of them are tested above.
    sides = cost.inner_sides
    monkeypatch.setattr(cost, 'inner_sides', lambda subject: sides(subject)[:3])
    file = tmp_path / 'figures.json'
    args = ['--device', 'cpu', '--repeats', 1, '--clock', 'cpu', '--json', file]
    call(monkeypatch, config, *args)
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert 'batch of 2 images of ' in printed
    assert ', from the config' in printed
    assert f'torch {torch.__version__.split("+")[0]}' in content['versions']
    assert '1 threads' in content['machine']
    assert list(content['sections']) == ['training', 'inner', 'attack', 'memory']
    for tables in content['sections'].values():
        (table,) = tables
        assert table['notes'] == []
        for row in table['rows']:
            assert f'| {row["what"]} |' in printed
            assert row['ratio'] > 0
            assert len(row.get('seconds', 'a')) == 1
    (training,), (memory,) = (
        content['sections']['training'],
        content['sections']['memory'],
    )
    assert [row['what'] for row in training['rows'] if 'passed' in row] == [FREE]
    ratios = {row['what']: row['ratio'] for row in memory['rows']}
    # The pixels are few; a graph that is kept is not.
    assert 1 <= ratios[WITH_GRADIENT] <= ratios[FREE] < 1.6
    assert ratios[FREE] < ratios[OFFICIAL]
    assert ratios['PGD step'] < 1


def test_a_classifier_on_synthetic_images(monkeypatch, capsys):
    args = ['--size', 32, 40, '--batch-size', 3, '--repeats', 1, '--device', 'cpu']
    call(monkeypatch, CLASSIFIER, *args, '--sections', 'training', 'attack')
    printed = capsys.readouterr().out
    assert 'batch of 3 images of 32 x 40, synthetic' in printed
    assert f'Without {OFFICIAL}' in printed
    assert '| APGD step |' in printed


@pytest.mark.parametrize('kept', [True, False])
def test_check_is_an_exit_status(config, monkeypatch, kept):
    def section(*_):
        return Table('t', {'what': 'what'}, [{'what': 'w', 'passed': kept}])

    monkeypatch.setitem(cost.SECTIONS, 'training', section)
    args = [config, '--size', 64, 64, '--device', 'cpu', '--sections', 'training']
    call(monkeypatch, *args)  # says so, and that is all
    if kept:
        call(monkeypatch, *args, '--check')
    else:
        with pytest.raises(SystemExit) as exit_info:
            call(monkeypatch, *args, '--check')
        assert exit_info.value.code == 1
