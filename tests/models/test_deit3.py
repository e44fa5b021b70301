"""DeiT III: timm's outputs where mmpretrain's differ, with patches and a ConvStem."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from convstem_reference import (
    classifier,
    from_timm,
    number_of_weights,
    plain_stem,
    randomise,
)
from mmrobust.errors import ConfigError
from mmrobust.registry import MODELS

TINY = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)


@pytest.mark.parametrize(
    ('kind', 'published'),
    [('mmrobust.DeiT3ConvStem', 39_527_272), ('mmrobust.DeiT3', 38_849_512)],
)
def test_parameters(kind: str, published: int) -> None:
    assert number_of_weights(512, type=kind, arch='medium') == published


@pytest.fixture(scope='module')
def reference() -> torch.nn.Module:
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    return randomise(timm.create_model('deit3_medium_patch16_224'))


def test_a_classifier_equals_timm(reference: torch.nn.Module) -> None:
    """And mmpretrain's own class does not."""
    model, stock = (
        classifier(512, type=kind, arch='medium').eval()
        for kind in ('mmrobust.DeiT3', 'DeiT3')
    )
    for each in (model, stock):
        each.load_state_dict(from_timm(reference))
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected, found = reference(image), model(image)
        # A copy, such as that of an exponential moving average, stands on its own.
        copy = deepcopy(model)
        for weight in model.parameters():
            weight.zero_()
        copied, wrong = copy(image), stock(image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(copied, expected, atol=1e-4, rtol=0)
    assert (wrong - expected).abs().max() > 0.1 * expected.std() > 0.01


def test_the_convstem_equals_timm(reference: torch.nn.Module) -> None:
    reference = deepcopy(reference)
    reference.patch_embed.proj = randomise(plain_stem('vit-medium'))
    model = classifier(512, type='mmrobust.DeiT3ConvStem', arch='medium').eval()
    model.load_state_dict(from_timm(reference))
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(image), reference(image), atol=1e-4, rtol=0)


@pytest.mark.parametrize('arch', ['small', 'medium', 'base', 'large', 'huge'])
def test_every_arch_uses_both_norms(arch: str) -> None:
    """The norms scale a layer's parts; a part whose norm is zero sees no input."""
    with torch.device('meta'):
        whole = MODELS.build(dict(type='mmrobust.DeiT3', arch=arch))
    settings = dict(whole.arch_settings, num_layers=1)
    model = MODELS.build(
        dict(type='mmrobust.DeiT3', arch=settings, img_size=32, out_type='raw')
    )
    assert {type(layer) for layer in whole.layers} == {type(model.layers[0])}
    layer = randomise(model.layers[0])
    inside = {}
    layer.ffn.register_forward_pre_hook(lambda _, args: inside.update(ffn=args[0]))
    layer.attn.register_forward_pre_hook(lambda _, args: inside.update(attn=args[0]))
    layer.ln2.weight.data.zero_()
    layer.ln2.bias.data.fill_(2.0)
    layer(torch.randn(1, 5, settings['embed_dims']))
    assert inside['ffn'].eq(2).all()
    assert not inside['attn'].eq(2).any()


@pytest.mark.parametrize('kind', ['mmrobust.DeiT3', 'mmrobust.DeiT3ConvStem'])
def test_a_detector_s_backbone(kind: str) -> None:
    model = MODELS.build(
        dict(type=kind, arch=TINY, out_type='featmap', frozen_stages=1)
    ).train()
    for size, map_size in (((70, 33), (5, 3)), ((32, 64), (2, 4))):
        (out,) = model(torch.rand(2, 3, *size))
        assert out.shape == (2, 16, *map_size)
    assert [layer.training for layer in model.layers] == [False, True, True]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(('patch_embed.', 'layers.0.', 'pos_embed', 'cls_token'))
    }


def test_the_mean_of_all_tokens() -> None:
    """mmpretrain's class accepts this type of output but fails at it."""
    model = MODELS.build(dict(type='mmrobust.DeiT3', arch=TINY, out_type='avg_featmap'))
    raw = deepcopy(model)
    raw.out_type = 'raw'
    image = torch.rand(1, 3, 32, 48)
    mean = raw(image)[0][:, 1:].mean(1)
    expected = torch.nn.functional.layer_norm(mean, (16,), eps=1e-6)
    torch.testing.assert_close(model(image)[0], expected)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match='no published ConvStem: choose medium,'):
        MODELS.build(dict(type='mmrobust.DeiT3ConvStem', arch='small'))
    with pytest.raises(ConfigError, match='whose stem has no patches'):
        MODELS.build(dict(type='mmrobust.DeiT3ConvStem', arch=TINY, patch_size=16))
    with pytest.raises(ConfigError, match='choose up to 3'):
        MODELS.build(dict(type='mmrobust.DeiT3', arch=TINY, frozen_stages=4))
