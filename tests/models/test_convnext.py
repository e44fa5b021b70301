"""ConvNeXts with a ConvStem and isotropic ones: stems, levels, frozen parts.

That classifiers give timm's logits is shown in tests/weights/test_sources.py.
"""

import pytest
import torch
from convstem_reference import STEMS, plain_stem, randomise
from mmrobust.errors import ConfigError
from mmrobust.models.convnext import conv_stem, conv_stem_16
from mmrobust.registry import MODELS

STEM, ISOTROPIC = 'mmrobust.ConvNeXtConvStem', 'mmrobust.ConvNeXtIsotropic'
SMALL = dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])
ONE = dict(depths=[3], channels=[8])


def stemmed(arch=SMALL, **kwargs):
    return MODELS.build(dict(type=STEM, arch=arch, **kwargs))


def isotropic(arch=ONE, **kwargs):
    return MODELS.build(dict(type=ISOTROPIC, arch=arch, **kwargs))


@pytest.mark.parametrize('name', STEMS)
def test_a_stem_is_the_published_one(name):
    layers, last = STEMS[name]
    stem = conv_stem(3, layers) if last is None else conv_stem_16(3, last)
    plain = randomise(plain_stem(name))
    stem.load_state_dict(plain.state_dict())  # the same names, none left over
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = stem(image)
        torch.testing.assert_close(found, plain(image), atol=1e-4, rtol=0)
    side = 56 if last is None else 14
    assert found.shape == (1, last or layers[-1][0], side, side)


def test_odd_sides_are_rounded_up():
    with torch.no_grad():
        assert conv_stem_16(3, 8)(torch.zeros(1, 3, 33, 17)).shape == (1, 8, 3, 2)


def test_four_feature_levels_for_a_detector():
    model = stemmed(out_indices=[0, 1, 2, 3], gap_before_final_norm=False)
    outs = model(torch.zeros(2, 3, 64, 96))
    assert [tuple(out.shape) for out in outs] == [
        (2, 8, 16, 24),
        (2, 16, 8, 12),
        (2, 24, 4, 6),
        (2, 32, 2, 3),
    ]


def test_frozen_stages_reach_the_stem():
    model = stemmed(frozen_stages=1)
    model.train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {n for n in frozen if n.startswith('downsample_layers.0')} == {
        f'downsample_layers.0.{layer}.{kind}'
        for layer in (0, 1, 3, 4)
        for kind in ('weight', 'bias')
    }
    assert not any(name.startswith('stages.1') for name in frozen)


@pytest.mark.parametrize('convstem', [False, True])
def test_a_detector_s_backbone(convstem):
    """Sides that are no multiples of 16 are padded by zeros, right and bottom."""
    model = randomise(isotropic(convstem=convstem, gap_before_final_norm=False))
    image = torch.rand(2, 3, 40, 70)
    padded = torch.zeros(2, 3, 48, 80)
    padded[:, :, :40, :70] = image
    with torch.no_grad():
        (out,) = model(image)
        assert out.shape == (2, 8, 3, 5)
        torch.testing.assert_close(out, model(padded)[0])
        assert model(torch.rand(1, 3, 32, 16))[0].shape == (1, 8, 2, 1)


def test_frozen_blocks():
    def frozen(count):
        model = isotropic(convstem=True, frozen_stages=count, drop_path_rate=0.5)
        model.train()
        assert [b.training for b in model.stages[0]] == [i >= count for i in range(3)]
        return {
            name.split('.depth')[0].split('.norm')[0].split('.point')[0]
            for name, p in model.named_parameters()
            if not p.requires_grad
        }

    stem = {
        f'downsample_layers.0.{i}.{kind}'
        for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)
        for kind in ('weight', 'bias')
    }
    assert frozen(0) == set()
    assert frozen(2) == stem | {'stages.0.0', 'stages.0.1'}
    blocks = {f'stages.0.{i}' for i in range(3)}
    assert frozen(3) == stem | blocks | {'norm0.weight', 'norm0.bias'}


def test_checkpointing_gives_the_same_gradient():
    """`with_cp` is mmpretrain's and still works."""
    plain = randomise(isotropic())
    saving = isotropic(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    gradients = []
    for model in (plain, saving):
        image = torch.ones(1, 3, 32, 32).requires_grad_()
        model(image)[0].square().sum().backward()
        gradients.append(image.grad)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


def test_layers_for_layerwise_rates():
    model = isotropic(convstem=True)
    for name, depth in (
        ('downsample_layers.0.12.weight', 0),
        ('stages.0.2.norm.weight', 3),
        ('norm0.bias', 4),
    ):
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 5)
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (4, 5)


@pytest.mark.parametrize(
    ('kind', 'settings', 'sentence'),
    [
        (STEM, dict(arch='atto'), 'no published ConvStem: choose one of tiny'),
        (STEM, dict(arch=SMALL, stem_patch_size=4), 'whose stride is fixed'),
        (ISOTROPIC, dict(arch='tiny'), 'choose small, or give depths'),
        (ISOTROPIC, dict(arch=dict(depths=[1, 1], channels=[8, 8])), 'one entry each'),
        (ISOTROPIC, dict(arch=ONE, stem_patch_size=4), 'whose stride is fixed'),
        (ISOTROPIC, dict(arch=ONE, out_indices=[0, 1, 2, 3]), '0, the only stage'),
        (ISOTROPIC, dict(arch=ONE, frozen_stages=4), 'choose 0 to 3'),
    ],
)
def test_what_is_refused(kind, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        MODELS.build(dict(type=kind, **settings))
