"""Vision transformers: images of any size, frozen layers, weights that stay.

That classifiers give timm's logits is shown in tests/weights/test_sources.py.
"""

from copy import deepcopy

import pytest
import torch
from convstem_reference import classifier, from_timm, plain_stem, randomise
from mmrobust.errors import ConfigError
from mmrobust.registry import MODELS
from torch.nn import functional as F

VIT, DEIT3 = 'mmrobust.ViTConvStem', 'mmrobust.DeiT3'
DEIT3_STEM = 'mmrobust.DeiT3ConvStem'
TINY = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)


def build(arch=TINY, kind=VIT, **kwargs):
    return MODELS.build(dict(type=kind, arch=arch, **kwargs))


@pytest.fixture(scope='module')
def vit_small():
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    model = timm.create_model('vit_small_patch16_224')
    model.patch_embed.proj = plain_stem('vit-small')
    return randomise(model)


def test_a_feature_map_of_another_size(vit_small):
    """Stem, positions and layers of timm's, one after the other, from 90 x 60 pixels.

    The image is padded to 96 x 64, and the 14 x 14 positions interpolated to 6 x 4.
    """
    backbone = build('small', out_type='featmap').eval()
    weights = from_timm(vit_small)
    backbone.load_state_dict(
        {
            name.removeprefix('backbone.'): weight
            for name, weight in weights.items()
            if name.startswith('backbone.')
        }
    )
    image = torch.rand(2, 3, 90, 60)
    with torch.no_grad():
        padded = torch.zeros(2, 3, 96, 64)
        padded[:, :, :90, :60] = image
        tokens = vit_small.patch_embed.proj(padded).flatten(2).transpose(1, 2)
        grid = vit_small.pos_embed[:, 1:].reshape(1, 14, 14, 384).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(6, 4), mode='bicubic', align_corners=False)
        tokens = tokens + grid.flatten(2).transpose(1, 2)
        first = vit_small.cls_token + vit_small.pos_embed[:, :1]
        tokens = torch.cat([first.expand(2, -1, -1), tokens], 1)
        tokens = vit_small.norm(vit_small.blocks(tokens))
        expected = tokens[:, 1:].transpose(1, 2).reshape(2, 384, 6, 4)
        (found,) = backbone(image)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        # Another size in between changes nothing.
        assert backbone(torch.rand(1, 3, 32, 160))[0].shape == (1, 384, 2, 10)
        torch.testing.assert_close(backbone(image)[0], found)


@pytest.mark.parametrize('kind', [VIT, DEIT3, DEIT3_STEM])
def test_frozen_layers_and_maps(kind):
    model = build(kind=kind, frozen_stages=2, drop_path_rate=0.5, out_type='featmap')
    for size, map_size in (((70, 33), (5, 3)), ((32, 64), (2, 4))):
        (out,) = model(torch.rand(2, 3, *size))
        assert out.shape == (2, 16, *map_size)
    for training in (True, False, True):
        model.train(training)
        assert [layer.training for layer in model.layers] == [False, False, training]
    before = ('patch_embed.', 'layers.0.', 'layers.1.', 'pos_embed', 'cls_token')
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not name.startswith(before), name
    assert all(p.requires_grad for p in build(kind=kind).parameters())
    if kind == VIT:
        whole = build(frozen_stages=3)
        assert not any(p.requires_grad for p in whole.parameters())


@pytest.mark.parametrize('kind', [VIT, DEIT3, DEIT3_STEM])
@pytest.mark.parametrize('init', ['Pretrained', 'mmrobust.PretrainedBackbone'])
def test_weights_from_a_file_stay(kind, init, tmp_path):
    file = str(tmp_path / 'weights.pth')
    saved = randomise(MODELS.build(dict(type=kind, arch=TINY))).state_dict()
    torch.save(saved, file)
    init_cfg = dict(type=init, checkpoint=file)
    for given in (init_cfg, [init_cfg]):
        model = MODELS.build(dict(type=kind, arch=TINY, init_cfg=given))
        for _ in range(2):  # a second call must not change them either
            model.init_weights()
            torch.testing.assert_close(model.state_dict(), saved, rtol=0, atol=0)


def test_the_stock_class_keeps_weights_from_a_file_too(tmp_path):
    """By itself it would draw some anew after loading: see its init_weights."""
    kind = 'mmpretrain.VisionTransformer'
    file = str(tmp_path / 'weights.pth')
    saved = randomise(MODELS.build(dict(type=kind, arch=TINY))).state_dict()
    torch.save(saved, file)
    init_cfg = dict(type='mmrobust.PretrainedBackbone', checkpoint=file)
    model = MODELS.build(dict(type=kind, arch=TINY, init_cfg=init_cfg))
    model.init_weights()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_without_a_file_position_embeddings_are_drawn():
    model = build()
    assert not model.pos_embed.any()
    model.init_weights()
    assert 0.01 < model.pos_embed.std() < 0.03
    # Once: they may have learnt since.
    model.pos_embed.data.zero_()
    model.init_weights()
    assert not model.pos_embed.any()


def test_layers_for_layerwise_rates():
    """mmpretrain's rule counts the stem as depth 0."""
    model = build()
    assert model.get_layer_depth('patch_embed.projection.0.weight') == (0, 5)
    assert model.get_layer_depth('layers.1.ln1.weight') == (2, 5)


@pytest.fixture(scope='module')
def deit3_medium():
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    return randomise(timm.create_model('deit3_medium_patch16_224'))


def test_a_deit3_equals_timm(deit3_medium):
    """And mmpretrain's own class does not."""
    model, stock = (
        classifier(512, type=kind, arch='medium').eval()
        for kind in ('mmrobust.DeiT3', 'DeiT3')
    )
    for each in (model, stock):
        each.load_state_dict(from_timm(deit3_medium))
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected, found = deit3_medium(image), model(image)
        # A copy, such as that of an exponential moving average, stands on its own.
        copy = deepcopy(model)
        for weight in model.parameters():
            weight.zero_()
        copied, wrong = copy(image), stock(image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(copied, expected, atol=1e-4, rtol=0)
    assert (wrong - expected).abs().max() > 0.1 * expected.std() > 0.01


@pytest.mark.parametrize('arch', ['small', 'medium', 'base', 'large', 'huge'])
def test_every_arch_uses_both_norms(arch):
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


def test_the_mean_of_all_tokens():
    """mmpretrain's class accepts this type of output but fails at it."""
    model = MODELS.build(dict(type='mmrobust.DeiT3', arch=TINY, out_type='avg_featmap'))
    raw = deepcopy(model)
    raw.out_type = 'raw'
    image = torch.rand(1, 3, 32, 48)
    mean = raw(image)[0][:, 1:].mean(1)
    expected = torch.nn.functional.layer_norm(mean, (16,), eps=1e-6)
    torch.testing.assert_close(model(image)[0], expected)


@pytest.mark.parametrize(
    ('kind', 'settings', 'sentence'),
    [
        (VIT, dict(arch='large'), 'no published ConvStem: choose small or'),
        (VIT, dict(arch='deit-small'), 'no published ConvStem: choose small or'),
        (VIT, dict(patch_size=16), 'whose stem has no patches'),
        (VIT, dict(patch_cfg={}), 'whose stem has no patches'),
        (VIT, dict(frozen_stages=4), 'choose up to 3'),
        (DEIT3_STEM, dict(arch='small'), 'no published ConvStem: choose medium,'),
        (DEIT3_STEM, dict(patch_size=16), 'whose stem has no patches'),
        (DEIT3, dict(frozen_stages=4), 'choose up to 3'),
    ],
)
def test_what_is_refused(kind, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(kind=kind, **settings)
