"""Attacks by name, what they tell about themselves, and settings that cannot be."""

from pathlib import Path

import pytest
from mmrobust.attacks import (
    APGD,
    ATTACK_NAMES,
    LARGER_RADII,
    OPTIONS,
    PGD,
    Ensemble,
    RandomNoise,
    Square,
    TransferPGD,
    attack_preset,
    attack_table,
    help_text,
    takes,
)
from mmrobust.errors import ConfigError
from mmrobust.attacks.ensemble import VERSIONS
from mmrobust.registry import ATTACKS

PGD_TYPE = {'type': 'mmrobust.PGD', 'norm': 'linf', 'eps': 4}
IMAGE = {'random_start': False}

# The config of every name, which figures under that name stand for.
PRESETS = {
    'noise': {'type': 'mmrobust.RandomNoise'},
    'fgsm': {'num_steps': 1, **IMAGE},
    'pgd': {'num_steps': 20},
    'cls': {'objective': 'cls', **IMAGE},
    'reg': {'objective': 'reg', **IMAGE},
    'cwa': {'objective': 'cwa', **IMAGE},
    'apgd': {'type': 'mmrobust.APGD', 'num_steps': 20},
    'mim': {'type': 'mmrobust.TransferPGD'},
    'dim': {'type': 'mmrobust.TransferPGD', 'diversity_prob': 0.5},
    'tim': {'type': 'mmrobust.TransferPGD', 'kernel_size': 15},
    'square': {'type': 'mmrobust.Square', 'num_queries': 1000},
    'patch': {'type': 'mmrobust.Patch'},
    'ensemble': {'type': 'mmrobust.Ensemble'},
    'universal': {'type': 'mmrobust.Universal'},
    'universal-patch': {'type': 'mmrobust.UniversalPatch'},
    'vanish': {'num_steps': 20, 'objective': 'vanish'},
    'fabricate': {'num_steps': 20, 'objective': 'fabricate'},
    'mislabel': {'num_steps': 20, 'objective': 'mislabel'},
    'targeted': {
        'num_steps': 20,
        'objective': {'name': 'targeted', 'target_class': 1},
    },
    'background': {'num_steps': 20, 'objective': 'background'},
    'dag': {'num_steps': 20, 'objective': 'dag'},
    'ranking': {'num_steps': 20, 'objective': 'ranking'},
    'latency': {'num_steps': 20, 'objective': 'latency'},
    'rpn': {'num_steps': 20, 'objective': 'rpn'},
    'objectness': {'num_steps': 20, 'objective': 'objectness'},
}

NO_STEPS = ('noise', 'fgsm', 'ensemble', 'universal', 'universal-patch')
FROM_FILE = ('universal', 'universal-patch')
OWN_STEP_SIZE = ('noise', 'ensemble', 'apgd', 'square', 'patch', *FROM_FILE)
# Names whose ball is their own.
OWN_BALL = ('patch', *FROM_FILE)


def build(name, **options):
    attack = ATTACKS.build(dict(type='mmrobust.attack_preset', name=name, **options))
    return attack


def test_names_stand_for_these_configs():
    assert list(ATTACK_NAMES) == list(PRESETS)
    for name, settings in PRESETS.items():
        found = attack_preset(name, target_class=1)
        own = {'type': ''} if name in OWN_BALL else PGD_TYPE
        assert found == {**own, **settings}


@pytest.mark.parametrize('name', ATTACK_NAMES)
def test_options_reach_those_that_have_them(name):
    given = dict(eps='8/255', step_size=1, num_steps=3, restarts=2, target_class=0)
    wanted = {**PGD_TYPE, **PRESETS[name], 'eps': '8/255'}
    if name in OWN_BALL:
        wanted = dict(PRESETS[name])
    if name not in NO_STEPS:
        wanted |= {'restarts': 2}
        wanted |= {'num_queries' if name == 'square' else 'num_steps': 3}
    if name not in OWN_STEP_SIZE:
        wanted |= {'step_size': 1}
    if name == 'targeted':
        wanted |= {'objective': {'name': name, 'target_class': 0}}
    assert attack_preset(name, **given) == wanted
    assert takes(name, 'num_steps') == (name not in NO_STEPS)
    assert takes(name, 'step_size') == (name not in OWN_STEP_SIZE)
    assert takes(name, 'restarts') == (name not in NO_STEPS)
    assert takes(name, 'target') == (name in ('mislabel', 'dag'))
    assert takes(name, 'version') == (name == 'ensemble')
    if name not in OWN_BALL:
        assert build(name, **given).describe()['eps'] == 8


def test_targets_and_versions():
    assert build('targeted', target_class='cat').objective.name == 'targeted(cat)'
    found = build('dag', target='next', target_class='cat')
    assert found.objective.name == 'dag(next)'
    assert isinstance(ensemble := build('ensemble', version='fast'), Ensemble)
    assert ensemble.version == 'fast-2'
    with pytest.raises(ConfigError, match="'targeted' needs the class"):
        build('targeted')


def test_apgd_in_l1_begins_with_larger_radii():
    config = attack_preset('apgd', norm='l1', eps=19125, num_steps=100, restarts=5)
    assert config['radius_schedule'] == LARGER_RADII
    settings = ATTACKS.build(config).describe()
    assert settings['radius_schedule'] == [(3, 30), (2, 30), (1, 40)]
    assert settings['restarts'] == 5


def test_what_attacks_tell_about_themselves():
    told = {
        kind: (kind.asks, kind.baseline, kind.transferable)
        for kind in (RandomNoise, PGD, APGD, TransferPGD, Square, Ensemble)
    }
    assert told == {
        RandomNoise: ('nothing', True, False),
        PGD: ('gradients', False, False),
        APGD: ('gradients', False, False),
        TransferPGD: ('gradients', False, True),
        Square: ('values', False, False),
        Ensemble: ('gradients', False, False),
    }
    members = build('ensemble').members
    assert members is not None
    assert list(members) == list(VERSIONS['standard-2'])
    assert all(each.members is None for each in members.values())


def test_help_says_the_defaults_that_differ():
    assert set(OPTIONS) == {
        *('norm', 'eps', 'step_size', 'num_steps', 'restarts', 'version'),
        *('target', 'target_class', 'eot', 'patch_size', 'patch_place'),
        *('patch_search', 'patch_objective', 'patch_eps', 'patch_transform'),
        *('perturbation', 'patch'),
    }
    assert help_text('num_steps') == (
        'steps of a run (default: 1000 for square; 10 for cls, reg, cwa, mim, dim, '
        'tim; else 20)'
    )
    assert help_text('restarts') == 'runs per image (default 1)'


def test_the_docs_have_the_table_of_the_classes():
    page = Path(__file__).parents[2] / 'docs' / 'attacks.md'
    assert f'\n\n{attack_table()}\n\n' in page.read_text(encoding='utf-8')


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('pdg', {}, 'noise, fgsm, pgd, cls, reg, cwa, apgd'),
        ('pgd', dict(norm='l2'), 'the l2 norm needs a radius.*510 for'),
        ('pgd', dict(norm='l1'), 'the l1 norm needs a radius.*19125 for'),
        ('pgd', dict(steps=3), "'steps' is no option of attacks"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        attack_preset(name, **options)


@pytest.mark.parametrize(
    ('kind', 'settings'),
    [
        *((kind, dict(eps=-1)) for kind in (PGD, APGD, Square, TransferPGD)),
        *((kind, dict(norm='l3')) for kind in (PGD, APGD, Square, RandomNoise)),
        *((kind, dict(objective='all')) for kind in (PGD, APGD, Square)),
        *((kind, dict(num_steps=0)) for kind in (PGD, APGD, TransferPGD)),
        *((kind, dict(restarts=0)) for kind in (PGD, APGD, Square)),
        *((kind, dict(eps=0.016)) for kind in (PGD, APGD)),  # of images in [0, 1]
        (PGD, dict(objective=[])),
        (PGD, dict(num_steps='many')),
        (PGD, dict(num_steps=2.5)),
        (PGD, dict(num_steps=True)),
        (PGD, dict(step_size=-1)),
        (PGD, dict(step_size='far')),
        (PGD, dict(step_size=float('inf'))),
        (PGD, dict(step_size=float('nan'))),
        (PGD, dict(eps=4, step_size=0.0078)),
        (PGD, dict(eps=8, step_size=0.008)),
        *((APGD, dict(rho=rho)) for rho in (0, 1.5, 'much', True)),
        *((APGD, dict(topk_share=share)) for share in (0, 1.5, 'some')),
        (APGD, dict(radius_schedule=[])),
        *((APGD, dict(radius_schedule=what)) for what in (3, 'large', [3, 2, 1])),
        (APGD, dict(radius_schedule=[(3, 0.5), (2, 0.5)])),
        (APGD, dict(radius_schedule=[(3, 0), (1, 1)])),
        (APGD, dict(radius_schedule=[(2, 0.5), (1, 0.4)])),
        (APGD, dict(radius_schedule=[(1, 0.5), (2, 0.5)])),
        (APGD, dict(radius_schedule=[(0.5, 0.5), (1, 0.5)])),
        (APGD, dict(radius_schedule=LARGER_RADII, num_steps=2)),
        (Square, dict(num_queries=0)),
        (Square, dict(num_queries=1.5)),
        *((Square, dict(p_init=share)) for share in (0, 1.1, 'much', True)),
        (TransferPGD, dict(norm='l1')),
        *((TransferPGD, dict(decay=value)) for value in (-1, float('inf'), 'much')),
        *((TransferPGD, dict(kernel_size=size)) for size in (4, 0)),
        *((TransferPGD, dict(diversity_prob=value)) for value in (1.5, True)),
        *((TransferPGD, dict(smallest=value)) for value in (0, 2)),
    ],
)
def test_impossible_settings(kind, settings):
    with pytest.raises(ConfigError):
        kind(**settings)
