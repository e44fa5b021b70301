"""The backbone's learning rate, parameter by parameter, against tables by hand."""

import pytest
import tiny
import torch
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmrobust.errors import ConfigError
from mmrobust.training import optim
from torch import nn

OURS = 'mmrobust.BackboneLrOptimWrapperConstructor'


class Toy(nn.Module):
    """A backbone with a norm layer and a frozen part, a head, a stray parameter."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.backbone.stem = nn.Linear(5, 5)
        self.backbone.stem.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))
        self.scale = nn.Parameter(torch.ones(1))
        # Not a backbone, whatever its name begins with.
        self.backbone_neck = nn.Linear(2, 2)


def groups_of(model, constructor=OURS, **paramwise):
    """Trainable parameter's name to (learning rate, weight decay)."""
    cfg = dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5)
    )
    if constructor:
        cfg['constructor'] = constructor
    if paramwise:
        cfg['paramwise_cfg'] = paramwise
    wrapper = build_optim_wrapper(model, cfg)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            if parameter.requires_grad:
                name = names.pop(id(parameter))
                found[name] = (group['lr'], group['weight_decay'])
    assert not names, 'every parameter belongs to one group'
    return found


class Outer(nn.Module):
    """A detector inside another one has its backbone deeper."""

    def __init__(self):
        super().__init__()
        self.student = Toy()


@pytest.mark.parametrize(
    ('kind', 'rules', 'expected'),
    [
        (
            Toy,
            dict(
                backbone_lr_mult=0.1,
                bias_lr_mult=2.0,
                bias_decay_mult=0.0,
                norm_decay_mult=0.25,
            ),
            {
                # In the backbone: a tenth of what the rules give elsewhere.
                'backbone.0.weight': (0.1, 0.5),
                'backbone.0.bias': (0.2, 0.0),
                'backbone.1.weight': (0.1, 0.125),
                'backbone.1.bias': (0.1, 0.125),  # mmengine: no bias rule in norms
                'head.0.weight': (1.0, 0.5),
                'head.0.bias': (2.0, 0.0),
                'head.1.weight': (1.0, 0.125),
                'head.1.bias': (1.0, 0.125),
                'scale': (1.0, 0.5),
                'backbone_neck.weight': (1.0, 0.5),
                'backbone_neck.bias': (2.0, 0.0),
            },
        ),
        # The multiplier comes on top of a user's rule for a part of the backbone.
        (
            Toy,
            dict(backbone_lr_mult=0.1, custom_keys={'backbone.1': dict(lr_mult=0.5)}),
            {
                'backbone.1.weight': (0.05, 0.5),
                'backbone.0.weight': (0.1, 0.5),
                'head.0.weight': (1.0, 0.5),
            },
        ),
        # mmengine takes a shortcut without settings, which must not be taken here.
        (
            Toy,
            {},
            {
                'backbone.0.weight': (0.1, 0.5),
                'backbone.1.bias': (0.1, 0.5),
                'head.0.weight': (1.0, 0.5),
            },
        ),
        # Another component of the name, wherever it stands.
        (
            Outer,
            dict(backbone_lr_mult=0.1),
            {
                'student.backbone.0.weight': (0.1, 0.5),
                'student.head.0.weight': (1.0, 0.5),
            },
        ),
        (
            Toy,
            dict(backbone_lr_mult=0.1, backbone_key='head'),
            {'head.0.weight': (0.1, 0.5), 'backbone.0.weight': (1.0, 0.5)},
        ),
    ],
    ids=['all', 'custom keys', 'nothing', 'deeper', 'key'],
)
def test_the_table_of_a_toy_model(kind, rules, expected):
    found = groups_of(kind(), **rules)
    assert {k: found[k] for k in expected} == {
        k: pytest.approx(v) for k, v in expected.items()
    }
    assert len(found) == 11


def test_native_custom_keys_drop_the_other_rules_inside_the_backbone():
    """The difference that the constructor exists for."""
    rules = dict(bias_lr_mult=2.0, bias_decay_mult=0.0)
    ours = groups_of(Toy(), backbone_lr_mult=0.1, **rules)
    keys = {'backbone.': dict(lr_mult=0.1)}
    native = groups_of(Toy(), None, custom_keys=keys, **rules)
    assert native['backbone.0.bias'] == pytest.approx((0.1, 0.5))
    assert ours['backbone.0.bias'] == pytest.approx((0.2, 0.0))
    different = {name for name in ours if ours[name] != pytest.approx(native[name])}
    # bias_decay_mult reaches biases of norm layers too, bias_lr_mult does not.
    assert different == {'backbone.0.bias', 'backbone.1.bias'}
    assert native['backbone.1.bias'] == pytest.approx((0.1, 0.5))
    assert ours['backbone.1.bias'] == pytest.approx((0.1, 0.0))


def test_the_table_of_a_detector():
    """FCOS with a frozen stage: the backbone at a tenth, biases doubled."""
    config = tiny.fcos()
    config['backbone']['frozen_stages'] = 1
    model = MODELS.build(config)
    rules = dict(bias_lr_mult=2.0, bias_decay_mult=0.0)
    found = groups_of(model, backbone_lr_mult=0.1, **rules)
    plain = groups_of(model, None, **rules)
    assert found.keys() == plain.keys()
    for name in found:
        factor = 0.1 if name.startswith('backbone.') else 1.0
        assert found[name] == pytest.approx((factor * plain[name][0], plain[name][1]))
    # ResNet-18 has 20 convolutions with a norm each; stem and first stage are frozen.
    assert sum(name.startswith('backbone.') for name in found) == 3 * (20 - 5)
    assert found['bbox_head.conv_cls.bias'] == (2.0, 0.0)


@pytest.mark.parametrize(
    ('rules', 'sentence'),
    [
        # Training the backbone at full speed would go unnoticed.
        (
            dict(backbone_key='trunk'),
            r"backbone_lr_mult=0.1 matched no parameter.*'trunk'.*"
            r'top-level modules: backbone, backbone_neck, head, scale\)',
        ),
        *(
            (dict(backbone_lr_mult=factor), 'backbone_lr_mult=')
            for factor in (-0.1, float('nan'), float('inf'), 'x', None)
        ),
    ],
)
def test_what_is_refused(rules, sentence):
    with pytest.raises(ConfigError, match=sentence):
        groups_of(Toy(), **rules)


def test_a_wholly_frozen_backbone_has_no_rate():
    """Fixed features are a recipe of their own; nothing is wrong with the rule."""
    model = Toy()
    model.backbone.requires_grad_(False)
    found = groups_of(model)
    assert set(found.values()) == {(1.0, 0.5)}
    assert not any(name.startswith('backbone.') for name in found)


def test_the_logged_rate_is_what_all_rules_give(monkeypatch):
    """A DETR's own tenth counts too: 1e-6, not 1e-5."""
    said = []
    monkeypatch.setattr(optim, 'print_log', lambda text, logger: said.append(text))
    keys = {'backbone.': dict(lr_mult=0.1)}
    groups_of(Toy(), backbone_lr_mult=0.1, custom_keys=keys)
    assert "('backbone'): 0.01, where the base rate is 1." in said[-1]
