"""What must not be loaded, and normalisations that do not belong together."""

import re
import runpy
import sys
from pathlib import Path

import mmpretrain.models  # noqa: F401  (registers the classifiers)
import published
import pytest
import tiny
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as CLASSIFICATION

from mmrobust import robustify
from mmrobust.weights import check_normalization, read_weights
from mmrobust.utils.files import file_sha256
from mmrobust.weights.convert import convert
from mmrobust.errors import ConfigError

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_backbone.py'
FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def _resnet(**settings):
    return published.network('resnet18', **settings).state_dict()


def _narrow():
    """A file that fits tests/tiny.py's ResNet-18 of 8 channels."""
    torch.manual_seed(3)
    return MODELS.build(ConfigDict(tiny.fcos()['backbone'])).state_dict()


def _tiny_model(checkpoint, preprocessor, **init):
    config = tiny.fcos()
    config['backbone']['init_cfg'] = dict(
        type='mmrobust.PretrainedBackbone', checkpoint=checkpoint, **init
    )
    config['data_preprocessor'] = dict(type='DetDataPreprocessor', **preprocessor)
    model = MODELS.build(ConfigDict(config))
    model.init_weights()
    return model


IMAGENET = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
)
UNIT = dict(mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True)


@pytest.mark.parametrize(
    ('wrap', 'fitting', 'others'),
    [
        (
            published.madry,
            IMAGENET,
            [UNIT, {**IMAGENET, 'bgr_to_rgb': False}, {}],
        ),
        (published.revisiting, UNIT, [IMAGENET, {**UNIT, 'bgr_to_rgb': False}]),
        (
            lambda state: published.revisiting(state, published.ODD_MEAN),
            IMAGENET,  # equal but for rounding
            [UNIT, dict(mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True)],
        ),
    ],
)
def test_the_preprocessor_must_fit_the_weights(tmp_path, wrap, fitting, others):
    source = published.save(wrap(_narrow()), tmp_path / 'source.pt')
    check_normalization(_tiny_model(source, fitting))
    for other in others:
        model = _tiny_model(source, other)
        with pytest.raises(ConfigError, match=r'need images of mean .*but.* has mean'):
            check_normalization(torch.nn.DataParallel(model))


def test_a_file_that_tells_nothing_is_checked_by_what_is_given(tmp_path):
    source = published.save(_narrow(), tmp_path / 'source.pt')
    check_normalization(_tiny_model(source, UNIT))
    check_normalization(_tiny_model(source, UNIT, normalization='unit'))
    given = dict(mean=IMAGENET['mean'], std=IMAGENET['std'])
    model = _tiny_model(source, UNIT, normalization=given)
    with pytest.raises(ConfigError, match='given in the config'):
        check_normalization(model)
    with pytest.raises(ConfigError, match="'imagenette' is unknown"):
        _tiny_model(source, UNIT, normalization='imagenette')
    source = published.save(published.madry(_narrow()), tmp_path / 'madry.pt')
    with pytest.raises(ConfigError, match=r'std \[255, 255, 255\].*given, but.*needs'):
        _tiny_model(source, UNIT, normalization='unit')


def test_a_classifiers_preprocessor_is_checked_too(tmp_path):
    source = published.save(published.madry(_resnet()), tmp_path / 'source.ckpt')
    init = dict(type='mmrobust.PretrainedClassifier', checkpoint=source)
    config = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
        data_preprocessor=dict(mean=[0] * 3, std=[255] * 3, to_rgb=True),
        init_cfg=init,
    )

    def build():
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = CLASSIFICATION.build(ConfigDict(config))
            model.init_weights()
        return model

    model = build()
    state = torch.load(source)['model']
    for name, value in model.state_dict().items():
        other = name.removeprefix('backbone.').removeprefix('head.')
        assert torch.equal(value, state[f'module.model.{other}'])
    with pytest.raises(ConfigError, match=r'std \[255, 255, 255\], RGB'):
        check_normalization(model)
    config['data_preprocessor'].update(mean=IMAGENET['mean'], std=IMAGENET['std'])
    check_normalization(build())
    config['head']['num_classes'] = 10
    with pytest.raises(ConfigError, match=r'has 1000 classes and .* has 10'):
        build()
    config['init_cfg'] = dict(init, fresh=[r'head\.'])
    model = build()
    assert model.head.fc.weight.shape == (10, 512)
    assert model.head.fc.weight.std() < 0.02  # the head's own initialisation
    assert torch.equal(model.backbone.conv1.weight, state['module.model.conv1.weight'])


def test_the_normalisation_survives_the_conversion(tmp_path):
    content = published.revisiting(_resnet(), published.ODD_MEAN)
    source = published.save(content, tmp_path / 'source.pt')
    out = str(tmp_path / 'out.pth')
    convert(source).save(out)
    known = read_weights(out).normalization
    assert known.mean == pytest.approx([123.66276, 116.28, 103.527195], abs=1e-3)
    assert known.rgb
    again = convert(out)
    assert again.architecture.name == 'resnet18'
    assert again.weights.normalization.fits(known)
    assert 'revisiting-at' in again.weights.source


def test_what_a_source_is_only_known_for_can_be_overruled(tmp_path):
    """Somebody's own training in a source's layout, with ImageNet's values."""
    source = published.save(published.revisiting(_resnet()), tmp_path / 'source.pt')
    assert read_weights(source).normalization.std == (255, 255, 255)
    own = read_weights(source, normalization='imagenet').normalization
    assert own.std == pytest.approx((58.395, 57.12, 57.375))
    content = published.revisiting(_resnet(), published.ODD_MEAN)
    stated = published.save(content, tmp_path / 'stated.pt')
    with pytest.raises(ConfigError, match='from inside the file'):
        read_weights(stated, normalization='unit')


@pytest.mark.parametrize(
    ('file', 'backbone'),
    [
        # All weights of the smaller network are in the larger one's file.
        ('resnet34', dict(type='ResNet', depth=18)),
        ('resnet101', dict(type='ResNet', depth=50)),
        ('convnext_small', dict(type='mmpretrain.ConvNeXt', arch='tiny')),
        ('seresnet50', dict(type='ResNet', depth=50)),
        ('convnextv2_tiny', dict(type='mmpretrain.ConvNeXt', arch='tiny')),
        # And here they are not.
        ('resnet18', dict(type='ResNet', depth=34)),
        ('wide_resnet50_2', dict(type='ResNet', depth=50)),
        ('resnet50', dict(type='ResNet', depth=18)),
        (
            'convnext_tiny+convstem',
            dict(type='mmpretrain.ConvNeXt', arch='tiny'),
        ),
        (
            'convnext_tiny',
            dict(type='mmrobust.ConvNeXtConvStem', arch='tiny'),
        ),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, file, backbone):
    with torch.device('meta'):
        state = published.network(file).state_dict()
    # Only the numbers of the file are missing.
    zeros = {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}
    source = published.save(zeros, tmp_path / 'source.pt')
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=source)
    fresh = [r'norm[0-3]\.'] if 'ConvNeXt' in backbone['type'] else []
    built = MODELS.build(dict(backbone, init_cfg=dict(init, fresh=fresh)))
    before = {k: v.clone() for k, v in built.state_dict().items()}
    words = r'lacks|no place for|variant of which no config'
    with pytest.raises(ConfigError, match=words) as caught:
        built.init_weights()
    assert '\n' not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in built.state_dict().items())


def test_a_level_that_the_backbone_leaves_out_is_no_mistake(tmp_path):
    source = published.save(_resnet(), tmp_path / 'source.pt')
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=source)
    config = dict(type='ResNet', depth=18, num_stages=3, strides=(1, 2, 2))
    config |= dict(dilations=(1, 1, 1), out_indices=(2,), init_cfg=init)
    MODELS.build(config).init_weights()


def test_position_embeddings_of_another_size_are_fitted(tmp_path):
    model = published.randomise(published.network('vit_tiny_patch16_224'))
    source = published.save(published.robustbench(model.state_dict()), tmp_path / 's')
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=source)
    config = dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=320)
    built = MODELS.build(dict(config, init_cfg=init))
    built.init_weights()
    assert built.pos_embed.shape == (1, 401, 192)
    grid = model.pos_embed[0, 1:].T.reshape(1, 192, 14, 14)
    wanted = torch.nn.functional.interpolate(
        grid, (20, 20), mode='bicubic', align_corners=False
    )
    assert torch.allclose(built.pos_embed[0, 1:].T.reshape(wanted.shape), wanted)
    assert torch.equal(built.pos_embed[0, 0], model.pos_embed[0, 0])


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('vit_tiny_patch16_224', {'no_embed_class': True}),  # 196, and not 197
        ('vit_tiny_patch16_224', {'img_size': (224, 448)}),  # no square
    ],
)
def test_position_embeddings_of_another_kind_are_refused(tmp_path, name, settings):
    source = published.save(_shapes(name, **settings), tmp_path / 'source.pt')
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=source)
    config = dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=224)
    with pytest.raises(ConfigError, match=r"lacks 1 of .*'pos_embed', of shape"):
        MODELS.build(dict(config, init_cfg=init)).init_weights()


def test_no_other_step_overwrites_the_weights(tmp_path):
    state = _narrow()
    source = published.save(state, tmp_path / 'source.pt')
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=source)
    other = dict(type='Constant', layer='Conv2d', val=1)
    config = tiny.fcos()['backbone']
    model = MODELS.build(dict(config, init_cfg=[other, init]))
    model.init_weights()
    assert torch.equal(model.conv1.weight, state['conv1.weight'])
    with pytest.raises(ConfigError, match=r'Constant comes after .*put .* last'):
        MODELS.build(dict(config, init_cfg=[init, other])).init_weights()


def test_robustify_takes_the_normalisation_from_a_file(tmp_path):
    raw = published.save(published.revisiting(_resnet()), tmp_path / 'raw.pt')
    cfg = robustify(FASTER_RCNN, backbone='resnet18', backbone_weights=raw)
    assert cfg.model.data_preprocessor.std == [255, 255, 255]
    cfg = robustify(FASTER_RCNN, backbone_weights=raw)
    assert cfg.model.data_preprocessor.std == [255, 255, 255]


def _shapes(name, **settings):
    """A network's weights, all zero and of no size in the file."""
    with torch.device('meta'):
        state = published.network(name, **settings).state_dict()
    return {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}


def test_a_huge_vits_heads_are_wider(tmp_path, monkeypatch):
    source = published.save(_shapes('deit3_huge_patch14_224'), tmp_path / 'source.pt')
    # Its weights would get the size that they have, 2.5 GB.
    monkeypatch.setattr(torch.Tensor, 'contiguous', lambda weight: weight)
    converted = convert(source, normalization='imagenet')
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmpretrain'):
        built = CLASSIFICATION.build(converted.architecture.backbone)
    assert built.layers[0].attn.num_heads == 16  # 80 channels each, not 64
    assert 'stride 16' in converted.snippets('x')['mmdet']
    assert 'enlarged when it is loaded' in converted.snippets('x')['mmdet']


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('vit_gigantic_patch14_224', {'depth': 2}),  # 104 channels per head
        ('vit_small_patch16_224', {'mlp_ratio': 3}),  # as mmpretrain's 'small', 96
    ],
)
def test_heads_that_nothing_tells_are_not_guessed(tmp_path, name, settings):
    source = published.save(_shapes(name, **settings), tmp_path / 'source.pt')
    with pytest.raises(ConfigError, match='number of heads is not known'):
        convert(source, normalization='imagenet')


def test_a_classifier_without_its_last_norm_is_refused(tmp_path):
    state = _shapes('convnext_tiny')
    state = {k: v for k, v in state.items() if not k.startswith('head.norm')}
    source = published.save(state, tmp_path / 'source.pt')
    with pytest.raises(ConfigError, match=r"2 of its weights.*'backbone.norm3"):
        convert(source, normalization='imagenet')
    state = {k: v for k, v in state.items() if not k.startswith('head.')}
    source = published.save(state, tmp_path / 'source.pt')
    assert convert(source, normalization='imagenet').architecture.head is None


@pytest.mark.parametrize('odd', ['hidden layer', 'two names'])
def test_a_head_of_which_a_part_is_unknown_is_left_out(tmp_path, odd):
    if odd == 'two names':
        state = _shapes('resnet18')
        state['head.fc.weight'] = torch.ones(1000, 512)
    else:
        state = _shapes('convnext_large_mlp')
    source = published.save(state, tmp_path / 'source.pt')
    converted = convert(source, normalization='imagenet')
    assert converted.architecture.head is None
    assert not [name for name in converted.state if name.startswith('head.')]
    assert sum(converted.weights.left_out.values()) == len(state) - len(converted.state)


@pytest.mark.parametrize(
    ('mean', 'std', 'wanted'),
    [
        (0.5, 0.25, ([127.5] * 3, [63.75] * 3)),
        ([0.5], [0.25], ([127.5] * 3, [63.75] * 3)),
        ([0.5, 0.25, 0], [1, 0.5, 0.25], ([127.5, 63.75, 0], [255, 127.5, 63.75])),
        ([0.5] * 4, [0.5] * 4, None),
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], None),  # pixel units
        ([0.5] * 3, [0.0] * 3, None),
    ],
)
def test_a_normaliser_of_another_shape(tmp_path, mean, std, wanted):
    state = {f'model.{k}': v for k, v in _narrow().items()}
    state['normalize.mean'] = torch.tensor(mean)
    state['normalize.std'] = torch.tensor(std)
    source = published.save(state, tmp_path / 'source.pt')
    if wanted is None:
        with pytest.raises(ConfigError, match=r'normaliser of mean .* is none for'):
            read_weights(source)
    else:
        known = read_weights(source).normalization
        assert (list(known.mean), list(known.std)) == wanted


@pytest.mark.parametrize(
    'wrap',
    [
        lambda good, bad: {'model': {'state_dict': good}},
        lambda good, bad: {'model': bad, 'ema': {'module': good, 'updates': 7}},
        lambda good, bad: {'state_dict': bad, 'ema': {'state_dict': good}},
        lambda good, bad: {'module': good, 'optimizer': {'state': bad}},
    ],
)
def test_weights_a_level_deeper_are_found(tmp_path, wrap):
    good = {'conv1.weight': torch.ones(2)}
    content = wrap(good, {'conv1.weight': torch.zeros(2)})
    source = published.save(content, tmp_path / 'source.pt')
    assert torch.equal(read_weights(source).tensors['conv1.weight'], torch.ones(2))


# ---------------------------------------------------------------- the tool


def _tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_tool_prints_what_there_is_to_know(tmp_path, monkeypatch, capsys):
    source = published.save(published.madry(_resnet()), tmp_path / 'source.ckpt')
    out = str(tmp_path / 'new' / 'out.pth')
    config = tmp_path / 'config.py'
    Config(dict(model=tiny.fcos())).dump(config)
    options = ('--arch', 'resnet18', '--full', '--num-classes', '1000')
    assert _tool(monkeypatch, source, out, *options, '--config', str(config)) == 0
    printed = capsys.readouterr().out
    for text in (
        file_sha256(source),
        file_sha256(out),
        'MadryLab',
        'resnet18',
        '1000 classes',
        'tensors        122 of 11,699,132 numbers',
        'attacker (124)',
        'mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375], RGB (from inside',
        "type='mmrobust.PretrainedBackbone'",
        f"load_from = '{out}'",
    ):
        assert text in printed
    content = torch.load(out, weights_only=True)
    assert len(content['state_dict']) == 122
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['out.pth']


def _cut(path):
    source = published.save(published.madry(_resnet()), path)
    path.write_bytes(path.read_bytes()[:100_000])
    return source


def _unknown(path):
    return published.save({'encoder.weird': torch.zeros(3)}, path)


def _named(name):
    return lambda path: published.save(_resnet(), path.with_name(name))


class Schedule:
    """A class of the file's own, as some of MadryLab's files pickle them."""


def _pickled(path):
    return published.save({**published.madry(_resnet()), 'schedule': Schedule()}, path)


@pytest.mark.parametrize(
    ('make', 'options', 'sentence'),
    [
        (_cut, (), 'damaged or incomplete'),
        (_unknown, (), r'names of no known source \(it has.*encoder.weird.*MadryLab'),
        (lambda path: published.save({'a': 1}, path), (), 'holds no weights'),
        (_named('plain.pth'), (), r'does not tell how.*give --normalization'),
        (
            _named('madry.pth'),
            ('--arch', 'resnet50', '--normalization', 'imagenet'),
            'is resnet18 and not resnet50',
        ),
        (
            _named('madry.pth'),
            ('--num-classes', '10', '--normalization', 'imagenet'),
            'has 1000 classes and not 10',
        ),
        (_named('ARES_Wide_ResNet50_2_AT.pth'), (), 'GELUs where ResNet has ReLUs'),
        (
            lambda path: published.save(published.revisiting(_resnet()), path),
            ('--config', 'CONFIG'),
            r'need images of mean \[0, 0, 0\].*but.*has mean \[123',
        ),
        (
            lambda path: published.save(
                published.madry({k: v for k, v in _resnet().items() if 'fc' not in k}),
                path,
            ),
            ('--full',),
            'has no head',
        ),
        (
            lambda path: published.save(
                published.madry(
                    {k: v for k, v in _resnet().items() if k != 'layer2.0.bn1.weight'}
                ),
                path,
            ),
            (),
            r"look like resnet18, but 1 of its weights.*'backbone.layer2.0.bn1",
        ),
        (
            lambda path: published.save(
                {**_resnet(), 'fc.weight': torch.ones(1000, 512, 1, 1)}, path
            ),
            ('--normalization', 'imagenet'),
            'another number of axes',
        ),
        (_pickled, (), r'pickled code .*not run.*backbone.py --trust'),
        (lambda path: str(path), (), 'does not exist'),
    ],
)
def test_mistakes_end_in_a_sentence(
    tmp_path, monkeypatch, capsys, make, options, sentence
):
    config = tmp_path / 'config.py'
    Config(dict(model=tiny.fcos())).dump(config)
    options = tuple(str(config) if o == 'CONFIG' else o for o in options)
    source = make(tmp_path / 'source.ckpt')
    out = tmp_path / 'out.pth'
    assert _tool(monkeypatch, source, str(out), *options) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith('error: ')
    assert '\n' not in message
    assert re.search(sentence, message), message
    assert not out.exists()


def test_a_trusted_file_is_read(tmp_path, monkeypatch):
    source = _pickled(tmp_path / 'source.ckpt')
    out = str(tmp_path / 'out.pth')
    assert _tool(monkeypatch, source, out, '--trust') == 0
    # What is written holds no code any more.
    assert 'meta' in torch.load(out, weights_only=True)


def test_a_users_own_file_is_not_taken_for_a_published_one(tmp_path):
    assert 'oddefense' in read_weights(_named('fcos_at.pth')(tmp_path / 'x')).source
    weights = read_weights(_named('my_fcos_at.pth')(tmp_path / 'x'))
    assert weights.normalization is None
    assert 'oddefense' not in weights.source


def test_ares_is_known_by_its_file_names(tmp_path):
    source = _named('ARES_ResNet50_AT.pth')(tmp_path / 'x')
    weights = read_weights(source)
    assert weights.normalization.mean == tuple(IMAGENET['mean'])
    assert 'ARES' in weights.source
