"""Weights in every source's layout give the same outputs in mmpretrain and mmdet.

The reference is always timm's or torchvision's own forward pass, from the same 8-bit
picture, by the normalisation of the source.
"""

from pathlib import Path

import mmpretrain.models  # noqa: F401  (registers the classifiers)
import pytest
import timm
import torch
import torchvision
from mmdet.registry import MODELS as DETECTION
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as CLASSIFICATION
from torch import nn

import published
from mmrobust.errors import ConfigError
from mmrobust.weights import SOURCES, Source, read_weights, sources
from mmrobust.weights import UNIT as UNIT_RANGE
from mmrobust.weights.architectures import recognise
from mmrobust.weights.normalization import from_config_text
from mmrobust.weights.convert import convert
from mmrobust.weights.renaming import find_layout, to_mm

UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = (published.MEAN, published.STD)
ODD = (published.ODD_MEAN, published.STD)


def _picture(side):
    """An RGB picture of 8 bits whose channels differ, as (3, side, side)."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(3, side, side, generator=generator)
    return (noise * torch.tensor([250.0, 150.0, 60.0]).view(3, 1, 1)).to(torch.uint8)


def _normalised(picture, by):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in by)
    return (picture[None] / 255 - mean) / std


def _run(text):
    settings = {}
    exec(text, settings)
    return settings


@torch.no_grad()
def _classify(converted, path, picture):
    """Logits of the printed classifier config on the picture as a loader gives it."""
    converted.save(path)
    settings = _run(converted.snippets(path)['mmpretrain'])
    whole = dict(settings['model'], data_preprocessor=settings['data_preprocessor'])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = CLASSIFICATION.build(whole)
    state = torch.load(settings['load_from'], weights_only=True)['state_dict']
    model.load_state_dict(state, strict=True)
    model.eval()
    bgr = picture.flip(0)
    inputs = model.data_preprocessor({'inputs': [bgr]})['inputs']
    return model(inputs, mode='tensor')


# How each source saves a network, and what its images are.
LAYOUTS = {
    'madry': (published.madry, IMAGENET),
    'madry-old': (lambda s: published.madry(s, old=True), IMAGENET),
    'madry-extra': (lambda s: published.madry(s, extra='model.'), IMAGENET),
    'revisiting': (published.revisiting, UNIT),
    'revisiting-normaliser': (
        lambda s: published.revisiting(s, published.ODD_MEAN),
        ODD,
    ),
    'robustbench': (published.robustbench, IMAGENET),
    'robustbench-ddp': (
        lambda s: {
            'state_dict': published.prefixed(published.robustbench(s), 'module.')
        },
        IMAGENET,
    ),
    'robustbench-mu': (
        lambda s: {
            'mu': published.normaliser()[0],
            'sigma': published.normaliser()[1],
            **published.prefixed(s, 'model.'),
        },
        IMAGENET,
    ),
    'sequential': (
        lambda s: {
            '0.mean': torch.tensor(published.MEAN),
            '0.std': torch.tensor(published.STD),
            **published.prefixed(s, '1.'),
        },
        IMAGENET,
    ),
    'timm-ema': (
        lambda s: {
            'state_dict': {k: torch.zeros_like(v) for k, v in s.items()},
            'state_dict_ema': published.prefixed(s, 'module.'),
        },
        IMAGENET,
    ),
}
TIMM = 'timm-ema'
CASES = [
    ('resnet18', 'madry', 'resnet18'),
    ('resnet18', 'madry-old', 'resnet18'),
    ('resnet18', 'madry-extra', 'resnet18'),
    ('resnet18', 'robustbench', 'resnet18'),
    ('resnet18', 'robustbench-ddp', 'resnet18'),
    ('resnet18', 'robustbench-mu', 'resnet18'),
    ('resnet18', 'sequential', 'resnet18'),
    ('resnet18', TIMM, 'resnet18'),
    ('resnet50', 'madry', 'resnet50'),
    ('convnext_tiny+convstem', 'revisiting', 'convnext-tiny-convstem'),
    ('convnext_tiny', 'revisiting-normaliser', 'convnext-tiny'),
    ('vit_small_patch16_224+convstem', 'revisiting-normaliser', 'vit-small-convstem'),
    ('vit_small_patch16_224', 'revisiting-normaliser', 'vit-small'),
    (
        'isotropic+convstem',
        'revisiting-normaliser',
        'convnext-isotropic-small-convstem',
    ),
    ('isotropic', 'revisiting-normaliser', 'convnext-isotropic-small'),
    ('deit3_medium_patch16_224+convstem', 'revisiting', 'deit3-medium-convstem'),
]


@pytest.mark.parametrize(('name', 'layout', 'architecture'), CASES)
def test_a_converted_classifier_gives_the_same_logits(
    tmp_path, name, layout, architecture
):
    model = published.randomised(name)
    wrap, by = LAYOUTS[layout]
    source = published.save(wrap(model.state_dict()), tmp_path / 'source.pt')
    side = 224 if 'vit' in name or 'deit' in name else 64
    picture = _picture(side)
    with torch.no_grad():
        expected = model(_normalised(picture, by))
        swapped = model(_normalised(picture.flip(0), by))
    given = 'imagenet' if layout == TIMM else None
    converted = convert(source, normalization=given)
    assert converted.architecture.name == architecture
    logits = _classify(converted, str(tmp_path / 'out.pth'), picture)
    scale = expected.abs().max()
    assert (logits - expected).abs().max() < 1e-4 * max(1, scale)
    # Otherwise the order of the channels would not be tested.
    assert (swapped - expected).abs().max() > 1e-3 * scale


@pytest.mark.parametrize(
    ('build', 'architecture'),
    [
        (lambda: torchvision.models.resnet18(), 'resnet18'),
        (
            lambda: torchvision.models.convnext.ConvNeXt(
                [
                    torchvision.models.convnext.CNBlockConfig(24, 48, 1),
                    torchvision.models.convnext.CNBlockConfig(48, 96, 1),
                    torchvision.models.convnext.CNBlockConfig(96, 192, 2),
                    torchvision.models.convnext.CNBlockConfig(192, None, 1),
                ]
            ),
            'convnext-1-1-2-1',
        ),
        (
            lambda: torchvision.models.VisionTransformer(64, 16, 2, 3, 192, 768),
            'vit-2x192',
        ),
    ],
)
def test_plain_torchvision(tmp_path, build, architecture):
    model = published.randomise(build().eval())
    source = published.save(model.state_dict(), tmp_path / 'source.pth')
    picture = _picture(64)
    with torch.no_grad():
        expected = model(_normalised(picture, IMAGENET))
    converted = convert(source, normalization='imagenet')
    assert converted.architecture.name == architecture
    logits = _classify(converted, str(tmp_path / 'out.pth'), picture)
    assert (logits - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


def test_safetensors_of_timm(tmp_path):
    from safetensors.torch import save_file

    model = published.randomised('resnet18')
    source = str(tmp_path / 'model.safetensors')
    save_file(model.state_dict(), source)
    converted = convert(source, normalization='half')
    assert converted.weights.normalization.mean == (127.5, 127.5, 127.5)
    for name, value in model.state_dict().items():
        name = f'head.{name}' if name.startswith('fc') else f'backbone.{name}'
        assert torch.equal(converted.state[name], value)
    Path(source).write_bytes(Path(source).read_bytes()[:1000])
    with pytest.raises(Exception, match='damaged or incomplete'):
        convert(source, normalization='half')


@pytest.mark.parametrize(
    ('name', 'architecture', 'parameters'),
    [
        # Counts of arXiv 2303.01870's networks (without, with ConvStem) and WRN-50-4.
        ('resnet50', 'resnet50', 25_557_032),
        ('wide_resnet50_2', 'wide-resnet50-2', 68_883_240),
        ('wide_resnet50_4', 'wide-resnet50-4', 223_439_144),
        ('convnext_tiny', 'convnext-tiny', 28_589_128),
        ('convnext_tiny+convstem', 'convnext-tiny-convstem', 28_627_432),
        ('convnext_small', 'convnext-small', 50_223_688),
        ('convnext_small+convstem', 'convnext-small-convstem', 50_261_992),
        ('convnext_base', 'convnext-base', 88_591_464),
        ('convnext_base+convstem', 'convnext-base-convstem', 88_753_416),
        ('convnext_large', 'convnext-large', 197_767_336),
        ('convnext_large+convstem', 'convnext-large-convstem', 198_134_680),
        ('vit_small_patch16_224', 'vit-small', 22_050_664),
        ('vit_small_patch16_224+convstem', 'vit-small-convstem', 22_777_576),
        ('vit_base_patch16_224', 'vit-base', 86_567_656),
        ('vit_base_patch16_224+convstem', 'vit-base-convstem', 87_147_112),
        ('deit3_medium_patch16_224', 'deit3-medium', 38_849_512),
        ('deit3_medium_patch16_224+convstem', 'deit3-medium-convstem', 39_527_272),
        ('isotropic', 'convnext-isotropic-small', 22_308_712),
        ('isotropic+convstem', 'convnext-isotropic-small-convstem', 23_035_624),
    ],
)
def test_published_architectures_are_recognised(name, architecture, parameters):
    with torch.device('meta'):
        model = published.network(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = model.state_dict()
    renamed, unknown = to_mm(find_layout(state), state)
    assert not unknown
    found = recognise(renamed)  # compares all names and shapes with the config's
    assert found.name == architecture
    assert sum(v.numel() for v in renamed.values()) == sum(
        v.numel() for v in state.values()
    )


def _detector(converted, path):
    settings = _run(converted.snippets(path)['mmdet'])['model']
    backbone = DETECTION.build(ConfigDict(settings['backbone']))
    backbone.init_weights()
    backbone.eval()  # mmdet's ResNet returns nothing here
    return backbone


@pytest.mark.parametrize(
    ('name', 'layout'),
    [
        ('resnet18', 'madry'),
        ('wide_resnet50_2', 'robustbench'),
        ('convnext_tiny+convstem', 'revisiting'),
        ('convnext_tiny', 'revisiting-normaliser'),
        ('vit_small_patch16_224+convstem', 'revisiting-normaliser'),
        ('vit_small_patch16_224', 'robustbench'),
    ],
)
@torch.no_grad()
def test_a_detectors_backbone_gives_the_features(tmp_path, name, layout):
    """By the published file itself, not the converted one: no hand work."""
    model = published.randomised(name)
    wrap, _ = LAYOUTS[layout]
    source = published.save(wrap(model.state_dict()), tmp_path / 'source.pt')
    backbone = _detector(convert(source), source)
    side = 224 if 'vit' in name or 'deit' in name else 64
    image = torch.rand(1, 3, side, side)
    outputs = backbone(image)
    if 'resnet' in name:
        x = model.maxpool(model.act1(model.bn1(model.conv1(image))))
        expected = []
        for level in (1, 2, 3, 4):
            x = getattr(model, f'layer{level}')(x)
            expected.append(x)
    elif 'convnext' in name:
        # Norms of the first levels are new, with weight 1 and bias 0.
        x, expected = model.stem(image), []
        for level, stage in enumerate(model.stages):
            x = stage(x)
            if level < 3:
                last = nn.functional.layer_norm(
                    x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6
                )
                expected.append(last.permute(0, 3, 1, 2))
            else:
                expected.append(model.head.norm(x))
    else:
        tokens = model.forward_features(image)[:, 1:]
        expected = [tokens.transpose(1, 2).reshape(1, -1, side // 16, side // 16)]
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        scale = max(1, wanted.abs().max())
        assert (output - wanted).abs().max() < 1e-4 * scale


def test_wide_resnet50_4_of_narrow_width(tmp_path):
    """The same proportions at a sixteenth of the width."""
    from torchvision.models.resnet import Bottleneck, ResNet

    class Narrow(ResNet):
        def __init__(self):
            Bottleneck.expansion = 1
            try:
                super().__init__(Bottleneck, [3, 4, 6, 3])
            finally:
                Bottleneck.expansion = 4

    model = published.randomise(Narrow().eval())
    source = published.save(published.madry(model.state_dict()), tmp_path / 's.ckpt')
    picture = _picture(64)
    with torch.no_grad():
        expected = model(_normalised(picture, IMAGENET))
    converted = convert(source)
    assert converted.architecture.backbone['expansion'] == 1
    logits = _classify(converted, str(tmp_path / 'out.pth'), picture)
    assert (logits - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


def test_a_detector_of_openmmlab_2_with_its_config(tmp_path):
    """As the detectors of arXiv 2305.17438: mmcls names, a config of mmdet 2."""
    with torch.device('meta'):
        shapes = published.network('resnet18').state_dict()
    state = {
        name: torch.rand(value.shape)
        for name, value in shapes.items()
        if not name.startswith('fc')
    }
    text = (
        'img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], '
        "to_rgb=False)\nmodel = dict(type='FasterRCNN')\nraise SystemExit\n"
    )
    content = {
        'meta': {'mmdet_version': '2.28.0', 'config': text},
        'state_dict': {
            **published.prefixed(state, 'backbone.'),
            'neck.lateral_convs.0.conv.weight': torch.zeros(1),
            'rpn_head.rpn_cls.weight': torch.zeros(1),
            'roi_head.bbox_head.fc_cls.weight': torch.zeros(1),
        },
    }
    source = published.save(content, tmp_path / 'frcnn.pth')
    weights = read_weights(source)
    assert weights.left_out == {'neck': 1, 'rpn_head': 1, 'roi_head': 1}
    assert weights.normalization.mean == (103.53, 116.28, 123.675)
    assert weights.normalization.std == (1, 1, 1)
    assert weights.normalization.rgb is False
    converted = convert(source)
    assert converted.architecture.name == 'resnet18'
    settings = _run(converted.snippets('x')['mmdet'])['model']
    assert settings['data_preprocessor']['bgr_to_rgb'] is False


def test_mmengines_own_average_is_its_state_dict(tmp_path):
    """The swapped state dict has the average, `ema_state_dict` the raw weights."""
    with torch.device('meta'):
        shapes = published.network('resnet18').state_dict()
    average = {f'backbone.{k}': torch.rand(v.shape) for k, v in shapes.items()}
    raw = {f'module.{k}': torch.zeros_like(v) for k, v in average.items()}
    content = {
        'meta': {'cfg': 'data_preprocessor = dict(mean=[1, 2, 3], std=[4, 5, 6])\n'},
        'state_dict': average,
        'ema_state_dict': {'steps': torch.tensor(3), **raw},
    }
    weights = read_weights(published.save(content, tmp_path / 'epoch_1.pth'))
    assert torch.equal(weights.tensors['bn1.weight'], average['backbone.bn1.weight'])
    assert 'moving average' in weights.source
    assert weights.normalization.mean == (1, 2, 3)
    assert weights.normalization.rgb is False
    del content['state_dict']
    weights = read_weights(published.save(content, tmp_path / 'other.pth'))
    assert weights.tensors['bn1.weight'].abs().max() == 0


@pytest.mark.parametrize('segmenter', [False, True])
def test_facebooks_names(tmp_path, segmenter):
    """The same numbers as under timm's names, also as a segmenter's backbone."""
    model = timm.models.convnext.ConvNeXt(
        num_classes=7, depths=(1, 1, 2, 1), dims=(8, 16, 32, 64)
    )
    if segmenter:
        model.stem = published.Stem([(4, 2), (8, 2)])
    state = model.state_dict()
    theirs = {}
    for name, value in state.items():
        if name.startswith('stem.'):
            name = name.replace('stem.', 'downsample_layers.0.', 1)
        elif '.downsample.' in name:
            name = name.replace('stages', 'downsample_layers')
            name = name.replace('.downsample', '')
        elif name.startswith('head.norm.'):
            name = name.replace('head.norm', 'norm')
        elif name.startswith('head.fc.'):
            name = name.replace('head.fc', 'head')
        else:
            name = name.replace('blocks.', '').replace('conv_dw', 'dwconv')
            name = name.replace('mlp.fc', 'pwconv')
        theirs[name] = value
    if segmenter:
        theirs = {k: v for k, v in theirs.items() if not k.startswith(('head', 'norm'))}
        theirs['norm0.weight'] = torch.full((8,), 3.0)
        theirs = published.prefixed(theirs, 'backbone.')
        theirs['decode_head.conv_seg.weight'] = torch.zeros(21, 8, 1, 1)
    timms = published.save(state, tmp_path / 'timm.pth')
    facebooks = published.save({'model': theirs}, tmp_path / 'facebook.pth')
    wanted = convert(timms, normalization='unit').state
    converted = convert(facebooks, normalization='unit')
    if segmenter:
        assert converted.weights.left_out == {'decode_head': 1}
        assert converted.state.pop('backbone.norm0.weight').mean() == 3
        wanted = {
            name: value
            for name, value in wanted.items()
            if not name.startswith(('head', 'backbone.norm'))
        }
    assert converted.state.keys() == wanted.keys()
    assert all(torch.equal(v, wanted[k]) for k, v in converted.state.items())


def test_a_new_source_is_one_row(tmp_path, monkeypatch):
    """As the docstring of Source shows it."""
    state = published.network('resnet18').state_dict()
    content = published.prefixed(state, 'module.encoder.')
    content['module.projector.weight'] = torch.zeros(1)
    source = published.save(content, tmp_path / 'ours.pt')
    with pytest.raises(ConfigError, match='names of no known source'):
        convert(source)
    row = Source(
        'our lab',
        tensors=(r'encoder\.', r'projector\.'),
        prefixes=('encoder.',),
        normalization=UNIT_RANGE,
    )
    monkeypatch.setattr(sources, 'SOURCES', [row, *SOURCES])
    converted = convert(source)
    assert converted.architecture.name == 'resnet18'
    assert converted.weights.source.startswith('our lab, ResNet')
    assert converted.weights.normalization.fits(UNIT_RANGE)
    assert converted.weights.left_out == {'projector': 1}


@pytest.mark.parametrize(
    ('text', 'mean'),
    [
        ('data_preprocessor = dict(mean=[1.0], std=[2.0])', (1.0,)),
        ("model = dict(type='A', data_preprocessor=dict(mean=[1], std=[2]))", (1.0,)),
        ("model = {'data_preprocessor': {'mean': [1], 'std': [2]}}", (1.0,)),
        (
            'data_preprocessor = dict(mean=[9], std=[2])\n'
            'model = dict(data_preprocessor=dict(mean=[1], std=[2]))',
            (1.0,),
        ),
        ('data_preprocessor = dict(mean=print(1))', None),
        ('no program', None),
    ],
)
def test_a_config_is_read_without_being_run(text, mean):
    found = from_config_text({'cfg': text})
    assert (found and found.mean) == mean
