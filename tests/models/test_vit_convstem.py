"""ViTs with a ConvStem: published counts, timm's outputs, images of any size."""

from __future__ import annotations

from pathlib import Path

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
from torch.nn import functional as F

VIT = 'mmrobust.ViTConvStem'
TINY = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)


def build(arch: object = TINY, **kwargs: object) -> torch.nn.Module:
    return MODELS.build(dict(type=VIT, arch=arch, **kwargs))


@pytest.mark.parametrize(
    ('kind', 'arch', 'channels', 'published'),
    [
        (VIT, 'small', 384, 22_777_576),
        (VIT, 'base', 768, 87_147_112),
        # The same with patches, of which the difference is known.
        ('VisionTransformer', 'deit-small', 384, 22_050_664),
        ('VisionTransformer', 'deit-base', 768, 86_567_656),
    ],
)
def test_parameters(kind: str, arch: str, channels: int, published: int) -> None:
    assert number_of_weights(channels, type=kind, arch=arch) == published


@pytest.fixture(scope='module')
def reference() -> torch.nn.Module:
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    model = timm.create_model('vit_small_patch16_224')
    model.patch_embed.proj = plain_stem('vit-small')
    return randomise(model)


def test_a_classifier_equals_timm(reference: torch.nn.Module) -> None:
    model = classifier(384, type=VIT, arch='small').eval()
    model.load_state_dict(from_timm(reference))  # none missing, none unexpected
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected, found = reference(image), model(image)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_feature_map_of_another_size(reference: torch.nn.Module) -> None:
    """Stem, positions and layers of timm's, one after the other, from 90 x 60 pixels.

    The image is padded to 96 x 64, and the 14 x 14 positions interpolated to 6 x 4.
    """
    backbone = build('small', out_type='featmap').eval()
    weights = from_timm(reference)
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
        tokens = reference.patch_embed.proj(padded).flatten(2).transpose(1, 2)
        grid = reference.pos_embed[:, 1:].reshape(1, 14, 14, 384).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(6, 4), mode='bicubic', align_corners=False)
        tokens = tokens + grid.flatten(2).transpose(1, 2)
        first = reference.cls_token + reference.pos_embed[:, :1]
        tokens = torch.cat([first.expand(2, -1, -1), tokens], 1)
        tokens = reference.norm(reference.blocks(tokens))
        expected = tokens[:, 1:].transpose(1, 2).reshape(2, 384, 6, 4)
        (found,) = backbone(image)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        # Another size in between changes nothing.
        assert backbone(torch.rand(1, 3, 32, 160))[0].shape == (1, 384, 2, 10)
        torch.testing.assert_close(backbone(image)[0], found)


def test_frozen_layers() -> None:
    model = build(frozen_stages=2, drop_path_rate=0.5)
    for training in (True, False, True):
        model.train(training)
        assert [layer.training for layer in model.layers] == [False, False, training]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(
            ('patch_embed.', 'layers.0.', 'layers.1.', 'pos_embed', 'cls_token')
        )
    }
    assert 'patch_embed.projection.12.weight' in frozen
    assert all(p.requires_grad for p in build().parameters())
    whole = build(frozen_stages=3)
    assert not any(p.requires_grad for p in whole.parameters())


@pytest.mark.parametrize('kind', [VIT, 'mmrobust.DeiT3', 'mmrobust.DeiT3ConvStem'])
@pytest.mark.parametrize('init', ['Pretrained', 'mmrobust.PretrainedBackbone'])
def test_weights_from_a_file_stay(kind: str, init: str, tmp_path: Path) -> None:
    file = str(tmp_path / 'weights.pth')
    saved = randomise(MODELS.build(dict(type=kind, arch=TINY))).state_dict()
    torch.save(saved, file)
    init_cfg = dict(type=init, checkpoint=file)
    for given in (init_cfg, [init_cfg]):
        model = MODELS.build(dict(type=kind, arch=TINY, init_cfg=given))
        for _ in range(2):  # a second call must not change them either
            model.init_weights()
            torch.testing.assert_close(model.state_dict(), saved, rtol=0, atol=0)


def test_the_stock_class_keeps_weights_from_a_file_too(tmp_path: Path) -> None:
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


def test_without_a_file_position_embeddings_are_drawn() -> None:
    model = build()
    assert not model.pos_embed.any()
    model.init_weights()
    assert 0.01 < model.pos_embed.std() < 0.03
    # Once: they may have learnt since.
    model.pos_embed.data.zero_()
    model.init_weights()
    assert not model.pos_embed.any()


def test_layers_for_layerwise_rates() -> None:
    """mmpretrain's rule counts the stem as depth 0."""
    model = build()
    assert model.get_layer_depth('patch_embed.projection.0.weight') == (0, 5)
    assert model.get_layer_depth('layers.1.ln1.weight') == (2, 5)


def test_what_is_refused() -> None:
    for arch in ('large', 'deit-small'):
        with pytest.raises(ConfigError, match='no published ConvStem: choose small or'):
            build(arch)
    for setting in (dict(patch_size=16), dict(patch_cfg={})):
        with pytest.raises(ConfigError, match='whose stem has no patches'):
            build(**setting)
    with pytest.raises(ConfigError, match='choose up to 3'):
        build(frozen_stages=4)
