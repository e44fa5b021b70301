"""ConvStem: the published counts, shapes, and a stem computed by hand."""

from __future__ import annotations

import pytest
import torch
from convstem_reference import classifier, from_timm, plain_stem, randomise
from mmengine.registry import init_default_scope
from mmrobust.errors import ConfigError
from mmrobust.registry import MODELS
from torch.nn import functional as F


def build(arch: object, **kwargs: object) -> torch.nn.Module:
    init_default_scope('mmdet')
    return MODELS.build(dict(type='mmrobust.ConvNeXtConvStem', arch=arch, **kwargs))


@pytest.mark.parametrize(
    ('arch', 'classifier'),
    [
        ('tiny', 28_627_432),
        ('small', 50_261_992),
        ('base', 88_753_416),
        ('large', 198_134_680),
    ],
)
def test_parameters_are_those_of_the_published_models(
    arch: str, classifier: int
) -> None:
    """The published integers are of classifiers with 1000 outputs."""
    model = build(arch, init_cfg=None)
    head = 1000 * (model.channels[-1] + 1)
    assert sum(p.numel() for p in model.parameters()) + head == classifier


TINY = dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])


def test_four_feature_levels_for_a_detector() -> None:
    model = build(TINY, out_indices=[0, 1, 2, 3], gap_before_final_norm=False)
    outs = model(torch.zeros(2, 3, 64, 96))
    assert [tuple(out.shape) for out in outs] == [
        (2, 8, 16, 24),
        (2, 16, 8, 12),
        (2, 24, 4, 6),
        (2, 32, 2, 3),
    ]


def test_the_stem_by_hand() -> None:
    """Convolution, LayerNorm over the channels, GELU; twice, with stride 2."""
    torch.manual_seed(0)
    model = build(TINY)
    x = torch.randn(1, 3, 16, 16)
    expected = x
    stem = model.downsample_layers[0]
    for conv, norm in ((stem[0], stem[1]), (stem[3], stem[4])):
        expected = F.conv2d(expected, conv.weight, conv.bias, stride=2, padding=1)
        mean = expected.mean(1, keepdim=True)
        var = expected.var(1, unbiased=False, keepdim=True)
        expected = (expected - mean) / (var + 1e-6).sqrt()
        expected = expected * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        expected = 0.5 * expected * (1 + torch.erf(expected / 2**0.5))
    torch.testing.assert_close(stem(x), expected)
    assert [m.out_channels for m in (stem[0], stem[3])] == [4, 8]


@pytest.mark.parametrize(('arch', 'channels'), [('tiny', 768), ('base', 1024)])
def test_a_classifier_equals_timm(arch: str, channels: int) -> None:
    """Two layers in the stem, and three."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    reference = timm.create_model(f'convnext_{arch}')
    reference.stem = plain_stem(f'convnext-{arch}')
    randomise(reference)
    model = classifier(channels, type='mmrobust.ConvNeXtConvStem', arch=arch)
    model.load_state_dict(from_timm(reference))  # none missing, none unexpected
    model.eval()
    image = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        expected, found = reference(image), model(image)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_frozen_stages_reach_the_stem() -> None:
    model = build(TINY, frozen_stages=1)
    model.train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {n for n in frozen if n.startswith('downsample_layers.0')} == {
        f'downsample_layers.0.{layer}.{kind}'
        for layer in (0, 1, 3, 4)
        for kind in ('weight', 'bias')
    }
    assert not any(name.startswith('stages.1') for name in frozen)


def test_what_has_no_convstem_is_refused() -> None:
    with pytest.raises(ConfigError, match='no published ConvStem: choose one of tiny'):
        build('atto')
    with pytest.raises(ConfigError, match='whose stride is fixed'):
        build(TINY, stem_patch_size=4)
