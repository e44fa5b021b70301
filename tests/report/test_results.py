"""Which attacks are on one curve, and what is drawn of it."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up_report import attack, report
from page_reader import PageReader

import mmrobust.attacks  # noqa: F401  (registers them)
from mmrobust.attacks.presets import attack_preset
from mmrobust.registry import ATTACKS
from mmrobust.report import AttackResult
from mmrobust.report.results import find_curves, titles


def build(name, attack, **settings):
    """A result with the settings of a real attack."""
    base = settings.pop('base', None)
    built = ATTACKS.build(attack_preset(attack, **settings))
    return AttackResult.of(name, built, base=base)


def summary(attacks):
    return [
        (curve.label, curve.axis, [value for value, _ in curve.points])
        for curve in find_curves(attacks)
    ]


@pytest.mark.parametrize('name', ['pgd', 'cls', 'apgd', 'dim', 'noise', 'square'])
def test_eps_makes_a_curve_of_every_attack(name):
    """Step sizes derive from eps."""
    attacks = [build(f'{name}-eps{eps}', name, eps=eps) for eps in (8, 2, 4)]
    ((_, axis, values),) = summary(attacks)
    assert (axis, values) == ('eps', [2, 4, 8])
    for each in attacks:
        each.base = name
    ((label, axis, values),) = summary(attacks)
    assert label.split(',')[0] == name
    assert (axis, values) == ('eps', [2, 4, 8])


@pytest.mark.parametrize(
    ('name', 'axis'),
    [('pgd', 'steps'), ('cls', 'steps'), ('apgd', 'steps'), ('square', 'queries')],
)
@pytest.mark.parametrize('base', [True, False])
def test_steps_make_a_curve_too(name, axis, base):
    """Below three steps PGD's step is eps, which makes no curve of its own."""
    more = {'base': name} if base else {}
    attacks = [
        build(f'{name}-steps{count}', name, num_steps=count, **more)
        for count in (100, 2, 1, 20)
    ]
    assert summary(attacks) == [(f'{name}, eps 4', axis, [1, 2, 20, 100])]


def test_a_given_step_size_is_a_curve_of_its_own():
    """At eps 4 and 10 steps the derived step is 1, which is on both curves."""
    made = [build(f'd{eps}', 'pgd', eps=eps, num_steps=10) for eps in (2, 4, 8)]
    given = dict(num_steps=10, step_size=1)
    made += [build(f'f{eps}', 'pgd', eps=eps, **given) for eps in (2, 8)]
    found = [[each.name for _, each in curve.points] for curve in find_curves(made)]
    assert sorted(found) == [['d2', 'd4', 'd8'], ['f2', 'd4', 'f8']]


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        (('pgd', dict(eps=2)), ('cls', dict(eps=4))),
        (('pgd', dict(eps=2)), ('apgd', dict(eps=4))),
        (('pgd', dict(eps=2)), ('pgd', dict(eps=4, restarts=2))),
        (('pgd', dict(eps=2)), ('pgd', dict(eps=400, norm='l2'))),
        (('pgd', dict(eps=2, num_steps=5)), ('pgd', dict(eps=4))),
        # Steps of a size that is neither the same nor derived from their number.
        (
            ('pgd', dict(num_steps=10, step_size=1.5)),
            ('pgd', dict(num_steps=20, step_size=1.25)),
        ),
        (('pgd', {}), ('pgd', {})),  # one value, twice
        (('noise', {}), ('pgd', {})),
    ],
)
def test_what_differs_in_more_than_one_number_is_no_curve(first, second):
    both = [build('a', first[0], **first[1]), build('b', second[0], **second[1])]
    assert summary(both) == []


def test_a_grid_has_rows_and_columns():
    attacks = [
        build(f'pgd-eps{e}-steps{n}', 'pgd', eps=e, num_steps=n, base='pgd')
        for e in (2, 4)
        for n in (5, 10, 20)
    ]
    assert summary(attacks) == [
        ('pgd, 5 steps', 'eps', [2, 4]),
        ('pgd, 10 steps', 'eps', [2, 4]),
        ('pgd, 20 steps', 'eps', [2, 4]),
        ('pgd, eps 2', 'steps', [5, 10, 20]),
        ('pgd, eps 4', 'steps', [5, 10, 20]),
    ]


def test_an_ensemble_is_a_curve_whatever_its_members_derive():
    attacks = []
    for eps in (2, 4):
        members = [{'step_size': eps / 4}]
        settings = {'eps': eps, 'num_steps': 0, 'members': members}
        attacks.append(attack(f'ensemble-eps{eps}', 0.5, settings, base='ensemble'))
    assert summary(attacks) == [('ensemble', 'eps', [2, 4])]


def drawn(page):
    """The lines of the first picture that are curves, in its own coordinates."""
    svg = page[page.index('<svg') : page.index('</svg>')]
    paths = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: none', svg)
    lines = []
    for path in paths:
        numbers = re.findall(r'[ML] ([-\d.]+) ([-\d.]+)', path)
        lines.append([(float(x), float(y)) for x, y in numbers])
    return [line for line in lines if len(line) == 3]


def test_the_picture_shows_the_figures():
    """mAP 0.6, 0.5 and 0.25 at eps 0, 2 and 4: places are proportional."""
    page = report().html()
    ((a, b, c),) = drawn(page)
    assert (b[0] - a[0]) == pytest.approx(c[0] - b[0])
    assert (c[1] - b[1]) / (b[1] - a[1]) == pytest.approx(0.25 / 0.1, rel=1e-4)
    assert 'mAP against eps: pgd, 10 steps' in PageReader(page).text


def test_the_table_begins_with_the_benign_figure():
    ((_, *rows),) = PageReader(report().html()).tables['curves']
    assert rows == [
        ['0 (benign)', '0.600 [0.550, 0.640]'],
        ['2', '0.500 [0.450, 0.540]'],
        ['4', '0.250 [0.200, 0.290]'],
    ]


def test_norms_and_axes_are_not_drawn_together():
    made = report()
    made.attacks += [
        attack(f'l2-{eps}', 0.5, {'eps': eps, 'norm': 'l2'}, base='l2')
        for eps in (100, 300)
    ]
    made.attacks += [
        attack(f'cls-{n}', 0.5, {'num_steps': n}, base='cls') for n in (1, 100)
    ]
    page = PageReader(made.html())
    assert page.names.count('svg') == 3
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    axes = [table[0][0] for table in page.tables['curves']]
    assert axes == ['eps (linf)', 'eps (l2)', 'steps']
    # Eleven lines are two pictures: more than six cannot be told apart.
    made.attacks = [
        attack(f'a{i}-{eps}', 0.5, {'eps': eps}, base=f'a{i}')
        for i in range(11)
        for eps in (1, 2)
    ]
    assert PageReader(made.html()).names.count('svg') == 2


def test_metrics_of_one_name_keep_their_prefix():
    assert titles(['a/coco/bbox_mAP', 'b/coco/bbox_mAP', 'a/coco/bbox_mAP_50']) == [
        'a/coco/bbox_mAP',
        'b/coco/bbox_mAP',
        'bbox_mAP_50',
    ]
    made = report()
    made.benign = {'pascal_voc/mAP': 0.65, 'pascal_voc/AP50': 0.65}
    text = made.markdown()
    assert '| pascal_voc/mAP | AP50 |' in text
    assert 'COCO mAP of the attacks that differ' in text


def test_a_point_without_a_figure_is_left_out():
    made = report()
    made.attacks[0].boxes = None
    made.attacks[0].metrics = {}
    page = made.html()
    assert drawn(page) == []
    ((_, *rows),) = PageReader(page).tables['curves']
    assert rows[1] == ['2', '-']


def test_an_entry_is_read_as_it_was_written():
    """Queries stay queries, so that curves keep their axis."""
    square = AttackResult(
        *('square', dict(norm='linf', eps=8.0, num_steps=100, gradient_free=True)),
        *(dict(mAP=0.25), ['a doubt'], 100, 0, 2.5),
        images=4,
        queries=400,
        asks='values',
    )
    assert AttackResult.read(square.as_dict()) == square


def test_an_evaluators_figure_compares_passes_whatever_else_is_analysed():
    made = report()
    made.benign_masks = made.benign_boxes
    assert 'Passes are compared, and ensembles choose, by the mAP of boxes' in (
        made.markdown()
    )
    made.judged_by = 'evaluator'
    made.benign_evaluator = dict(
        name='coco/bbox_mAP', means='VOC', mAP=made.benign_boxes['mAP']
    )
    text = made.markdown()
    assert 'Passes are compared' not in text
    assert 'Ensembles chose by COCO mAP on these images' in text
