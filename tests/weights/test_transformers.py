"""Swin, XCiT, pooled ViTs, CLIP's towers, ConvNeXt V2 and ResNeXt against timm's.

Small networks with random weights, saved in each source's layout. timm's own converters
tell that the older layouts are as they should be.
"""

from functools import partial

import mmpretrain.models  # noqa: F401  (registers the classifiers)
import published
import pytest
import timm
import torch
from mmdet.registry import MODELS as DETECTION
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as CLASSIFICATION
from timm.layers import QuickGELU
from timm.models.convnext import ConvNeXt
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from timm.models.vision_transformer import VisionTransformer, _convert_openai_clip
from timm.models.xcit import Xcit
from torch import nn

from mmrobust.errors import ConfigError
from mmrobust.registry import WEIGHT_INITIALIZERS
from mmrobust.weights import (
    BACKBONES,
    check_normalization,
    convert,
    read_weights,
    recognise,
)
from mmrobust.weights.families import QUICK_GELU
from mmrobust.weights.renaming import find_layout, to_mm
from mmrobust.weights.sources import Weights, activation_of

UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
IMAGENET = published.MEAN, published.STD
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
clip_norm = partial(nn.LayerNorm, eps=1e-5)
SWIN = dict(embed_dim=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), num_classes=5)
VIT = dict(embed_dim=128, depth=2, num_heads=2, img_size=32, patch_size=16)


def swin(img_size=128, window_size=2, **settings):
    return SwinTransformer(
        img_size=img_size, window_size=window_size, **SWIN, **settings
    )


def xcit():
    return Xcit(
        **dict(img_size=32, embed_dim=144, depth=1, cls_attn_layers=1, num_heads=3),
        **dict(eta=1.0, tokens_norm=True, num_classes=5),
    )


def pooled():
    return VisionTransformer(
        **dict(VIT, img_size=28, patch_size=14), global_pool='avg', num_classes=5
    )


def tower(activation=QuickGELU):
    return VisionTransformer(
        **VIT, pre_norm=True, num_classes=0, act_layer=activation, norm_layer=clip_norm
    )


def convnextv2():
    sizes = dict(depths=(1, 1, 2, 1), dims=(8, 16, 32, 64))
    return ConvNeXt(**sizes, use_grn=True, ls_init_value=None, num_classes=5)


def resnext():
    return ResNet(Bottleneck, (3, 4, 6, 3), 5, cardinality=2, base_width=2)


def old_swin(state):
    """Names of Microsoft and of timm before 0.9, with the buffers of both."""
    old = {}
    for level in (2, 1, 0):
        start = f'layers.{level + 1}.downsample.'
        for name in [n for n in state if n.startswith(start)]:
            old[name.replace(f'{level + 1}', f'{level}', 1)] = state[name]
    for name, value in state.items():
        if '.downsample.' not in name:
            old[name.replace('head.fc', 'head')] = value
    old['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(4, 4).long()
    old['layers.0.blocks.1.attn_mask'] = torch.zeros(256, 4, 4)
    return old


def of_open_clip(state):
    names = [
        ('patch_embed.proj.', 'conv1.'),
        ('norm_pre.', 'ln_pre.'),
        ('blocks.', 'transformer.resblocks.'),
        ('qkv.', 'in_proj_'),
        ('attn.proj.', 'attn.out_proj.'),
        ('mlp.fc1', 'mlp.c_fc'),
        ('mlp.fc2', 'mlp.c_proj'),
        ('norm1', 'ln_1'),
        ('norm2', 'ln_2'),
    ]
    theirs = {'proj': torch.ones(128, 7)}
    for name, value in state.items():
        if name.startswith('norm.'):
            name = name.replace('norm', 'ln_post')
        for ours, other in names:
            name = name.replace(ours, other)
        if name == 'cls_token':
            name, value = 'class_embedding', value.flatten()
        elif name == 'pos_embed':
            name, value = 'positional_embedding', value[0]
        theirs[name] = value
    return theirs


def same(state):
    return state


def robustbench(state):
    return {'state_dict': published.prefixed(published.robustbench(state), 'module.')}


def with_text(state):
    """A whole CLIP with its other tower."""
    text = {'transformer.resblocks.0.attn.in_proj_weight': torch.ones(2)}
    return {**text, **published.prefixed(of_open_clip(state), 'visual.')}


def ema(state):
    return {'state_dict': {}, 'state_dict_ema': published.prefixed(state, 'module.')}


# Network, layout, name of the file, what convert is given, normalisation, architecture.
CASES = {
    'Swin, timm': (swin, same, 'x', 'imagenet', IMAGENET, 'swin-2-1-2-1-window2'),
    'Swin, ARES': (
        *(swin, old_swin, 'ARES_Swin_base_patch4_window7_224_AT.pth', None),
        *(IMAGENET, 'swin-2-1-2-1-window2'),
    ),
    'Swin, MIMIR': (
        *(partial(swin, 64, 4), old_swin, 'Xu2024MIMIR_Swin-L.pt'),
        *(None, UNIT, 'swin-2-1-2-1-window4'),
    ),
    'XCiT, RobustBench': (
        *(xcit, ema, 'debenedetti2022light-xcit-s-imagenet-linf.pth.tar', None),
        *(UNIT, 'xcit-144-1'),
    ),
    'ViT/14, AdvXL': (pooled, same, 'advxl_vit_h14.pth', None, IMAGENET, 'vit-2x128'),
    'CLIP, FARE': (tower, of_open_clip, 'fare_eps_4.pt', None, CLIP, 'clip-2x128'),
    'CLIP, LAION': (
        *(partial(tower, nn.GELU), with_text, 'laion2b.bin', None),
        *(CLIP, 'clip-2x128'),
    ),
    'ConvNeXt V2, timm': (
        *(convnextv2, same, 'x', 'imagenet', IMAGENET, 'convnextv2-1-1-2-1'),
    ),
    'ResNeXt, RobustBench': (
        *(resnext, robustbench, 'x', None, IMAGENET, 'resnext50-2x2d'),
    ),
}


def case(name, tmp_path):
    """A network, its file converted, and an RGB picture of 8 bits."""
    build, layout, file, given, by, architecture = CASES[name]
    torch.manual_seed(1)
    model = published.randomise(build().eval())
    source = published.save(layout(model.state_dict()), tmp_path / file)
    converted = convert(source, normalization=given)
    assert converted.architecture.name == architecture
    side = getattr(model, 'patch_embed', nn.Module())
    side = getattr(side, 'img_size', (64,))[0]
    return model, converted, torch.randint(256, (3, side, side)).byte(), by


def normalised(picture, by):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in by)
    return (picture[None] / 255 - mean) / std


def settings(converted, kind, path='x'):
    made = {}
    exec(converted.snippets(str(path))[kind], made)
    return made


def enlarged(image):
    """Each patch of 14 x 14 pixels as one of 16 x 16, resized bilinearly."""
    patches = image.unfold(2, 14, 14).unfold(3, 14, 14)[0].flatten(0, 2)
    patches = nn.functional.interpolate(patches[:, None], (16, 16), mode='bilinear')
    rows, columns = image.shape[2] // 14, image.shape[3] // 14
    patches = patches.view(1, 3, rows, columns, 16, 16)
    return patches.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def levels(model, image):
    """A network's maps by timm's own layers; new norms have weight 1 and bias 0."""
    if isinstance(model, ResNet):
        x = model.maxpool(model.act1(model.bn1(model.conv1(image))))
        maps = []
        for level in (1, 2, 3, 4):
            x = getattr(model, f'layer{level}')(x)
            maps.append(x)
        return maps
    if isinstance(model, (SwinTransformer, ConvNeXt)):
        swin = isinstance(model, SwinTransformer)
        x = model.patch_embed(image) if swin else model.stem(image)
        stages, maps = (model.layers if swin else model.stages), []
        last = model.norm if swin else model.head.norm
        for stage in stages:
            x = stage(x)
            channels = x.shape[-1:] if swin else x.shape[1:2]
            y = x if swin else x.permute(0, 2, 3, 1)
            if len(maps) == 3:
                y = last(x) if swin else last(x).permute(0, 2, 3, 1)
            else:
                y = nn.functional.layer_norm(y, channels, eps=1e-5 if swin else 1e-6)
            maps.append(y.permute(0, 3, 1, 2))
        return maps
    if isinstance(model, Xcit):
        return model.forward_intermediates(
            image, indices=1, norm=False, intermediates_only=True
        )
    tokens = model.forward_features(image)[:, 1:]
    side = round(tokens.shape[1] ** 0.5)
    return [tokens.transpose(1, 2).unflatten(2, (side, side))]


def classifier(converted):
    made = settings(converted, 'mmpretrain')
    whole = dict(made['model'], data_preprocessor=made['data_preprocessor'])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = CLASSIFICATION.build(whole)
    lost = model.load_state_dict(converted.state, strict=False)
    assert not lost.unexpected_keys
    assert all(n.endswith('position_index') or 'head.' in n for n in lost.missing_keys)
    return model.eval()


def detectors_backbone(converted):
    """From the published file itself, by the printed config."""
    path = converted.weights.path
    config = settings(converted, 'mmdet', path)['model']['backbone']
    init = config.pop('init_cfg')
    backbone = DETECTION.build(ConfigDict(config))
    backbone.init_cfg = None  # of ConvNeXt a list, whose rest need not be run
    WEIGHT_INITIALIZERS.build(init)(backbone)
    backbone.train(False)
    return backbone


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_logits_and_levels_are_timms(tmp_path, name):
    """Of a tower of CLIP the class token, which it compares with texts."""
    model, converted, picture, by = case(name, tmp_path)
    image = normalised(picture, by)
    expected = model(image)
    ours = classifier(converted)
    inputs = ours.data_preprocessor({'inputs': [picture.flip(0)]})['inputs']
    head = converted.architecture.head
    given = ours(inputs) if head else ours.backbone(inputs)[0]
    scale = expected.abs().max()
    error = (given - expected).abs().max()
    assert error < 1e-5
    swapped = model(normalised(picture.flip(0), by))
    assert (swapped - expected).abs().max() > 1e-3 * scale
    errors = [error]

    expected = levels(model, image)
    backbone = detectors_backbone(converted)
    given = backbone(enlarged(image) if '/14' in name else image)
    assert len(given) == len(expected) == len(converted.architecture.channels)
    if 'MIMIR' in name:  # where a map is one window, mmdet's way still shifts it
        assert [s.blocks[0].attn.window_size for s in backbone.stages] == [4, 4, 4, 2]
        given, expected = given[:2], expected[:2]
    for level, wanted in zip(given, expected, strict=True):
        error = (level - wanted).abs().max()
        assert error < 1e-5
        errors.append(error)
    print(name, *(f'{float(error):.1e}' for error in errors))


@pytest.mark.parametrize(
    ('name', 'model', 'settings'),
    [
        ('swin-large-window14', 'swin_large_patch4_window7_224', dict(window_size=14)),
        ('vit-giant', 'vit_giant_patch14_224', dict(global_pool='avg', img_size=336)),
        ('clip-large', 'vit_large_patch14_clip_quickgelu_224', dict(num_classes=0)),
    ],
)
def test_the_table_has_the_networks_that_timm_builds(name, model, settings):
    with torch.device('meta'):
        state = timm.create_model(model, **settings).state_dict()
    renamed, unknown = to_mm(find_layout(state), state)
    assert not unknown
    found, known = recognise(renamed), BACKBONES[name]
    if name == 'clip-large':  # whose activation no weight tells
        found = found.activated(QUICK_GELU)
    assert (found.name, found.channels) == (name, known.channels)
    assert (found.backbone, found.detection) == (known.backbone, known.detection)


def test_the_older_layouts_are_what_timm_reads(tmp_path):
    model = swin()
    state = model.state_dict()
    assert len(old_swin(state)) == len(state) + 2
    again = checkpoint_filter_fn(old_swin(state), model)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], v) for k, v in state.items())
    model = tower()
    state = model.state_dict()
    again = _convert_openai_clip(of_open_clip(state), model, prefix='')
    assert {k for k in again if 'head' not in k} == state.keys()
    assert all(torch.equal(again[k], v) for k, v in state.items())


def test_activations_are_not_guessed(tmp_path):
    state = of_open_clip(tower().state_dict())
    source = published.save(state, tmp_path / 'open_clip_model.bin')
    with pytest.raises(ConfigError, match=r'do not show its activation.*--activation'):
        convert(source)
    converted = convert(source, activation='quick_gelu')
    out = str(tmp_path / 'out.pth')
    converted.save(out)
    again = convert(out).architecture  # which the file now knows
    assert again.backbone == converted.architecture.backbone
    assert convert(source, activation='gelu').architecture.backbone != again.backbone
    with pytest.raises(ConfigError, match=r'no tower of CLIP.*leave out --activation'):
        convert(
            published.save(swin().state_dict(), tmp_path / 'swin.pth'),
            normalization='unit',
            activation='gelu',
        )
    # A detector's tower is compared with what is known of the file.
    layers = dict(act_cfg=dict(type='GELU'))
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=out)
    config = {**again.detection, 'layer_cfgs': layers, 'init_cfg': init}
    with pytest.raises(ConfigError, match=r"quick_gelu and .* has gelu: .*QuickGELU'"):
        DETECTION.build(ConfigDict(config)).init_weights()
    named = published.save(state, tmp_path / 'x-laion2b.bin')
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=named)
    with pytest.raises(ConfigError, match=r"gelu and .* has quick_gelu: .*'GELU'"):
        DETECTION.build(
            ConfigDict({**again.detection, 'init_cfg': init})
        ).init_weights()


@pytest.mark.parametrize(
    ('path', 'activation'),
    [
        ('/a/vit_b_32-quickgelu-laion400m_e32-46683a32.pt', 'quick_gelu'),
        ('/a/vit_b_16-laion400m_e32-55e67d44.pt', 'gelu'),
        ('/data/laion400m/ViT-L-14-openai.pt', 'quick_gelu'),
        ('/data/laion400m/runs/model.pt', None),
        ('vit_base_patch16_clip_224.openai_ft_in1k/model.bin', None),
        ('chs20/FARE4-ViT-B-32-laion2B-s34B-b79K/open_clip_model.bin', 'gelu'),
        (
            'https://huggingface.co/chs20/FARE4-ViT-B-32-laion2B-s34B-b79K/resolve/main/'
            'open_clip_model.bin',
            'gelu',
        ),
        ('/w/fare_eps_4.pt', 'quick_gelu'),
    ],
)
def test_names_that_tell_the_activation(path, activation):
    assert activation_of(Weights(path, 'CLIP', {})) == activation


@pytest.mark.parametrize('kind', ['mmrobust.SwinTransformer', 'mmpretrain'])
def test_position_biases_are_fitted_to_another_window(tmp_path, kind):
    """As mmdet's Swin does it, which is another implementation."""
    model = published.randomise(swin())
    source = published.save(model.state_dict(), tmp_path / 'timm.pth')
    out = str(tmp_path / 'out.pth')
    convert(source, normalization='unit').save(out)
    sizes = dict(embed_dims=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4])
    init = dict(type='Pretrained', checkpoint=out)
    config = dict(type='SwinTransformer', **sizes, window_size=3)
    stock = DETECTION.build(ConfigDict(config, init_cfg=init))
    stock.init_weights()
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=source)
    init['fresh'] = [r'norm\d\.']
    if kind == 'mmpretrain':
        config = dict(arch=sizes, window_size=3, out_indices=[0, 1, 2, 3])
        kind = 'mmpretrain.SwinTransformer'
    ours = DETECTION.build(ConfigDict(config, type=kind, init_cfg=init))
    ours.init_weights()
    ours.init_weights()  # which is nothing more
    wanted, given = stock.state_dict(), ours.state_dict()
    name = 'stages.2.blocks.1.attn.w_msa.relative_position_bias_table'
    assert given[name].shape == (25, 2)
    assert given.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(given[name], value), name


@torch.no_grad()
@pytest.mark.parametrize('name', ['ViT/14, AdvXL', 'CLIP, FARE'])
def test_positions_are_fitted_to_another_size(tmp_path, name):
    """Those of a class token and 2 x 2 patches, to 3 x 4 patches."""
    model, converted, _, _ = case(name, tmp_path)
    grid = model.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    grid = nn.functional.interpolate(grid, (3, 4), mode='bicubic')
    places = torch.cat([model.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)
    side = model.patch_embed.patch_size[0]
    image = torch.randn(1, 3, 3 * side, 4 * side)
    tokens = model.patch_embed.proj(image).flatten(2).transpose(1, 2)
    x = model.norm_pre(torch.cat([model.cls_token, tokens], 1) + places)
    x = model.norm(model.blocks(x))[:, 1:]
    wanted = x.transpose(1, 2).unflatten(2, (3, 4))
    image = enlarged(image) if side == 14 else image
    given = detectors_backbone(converted)(image)[0]
    assert (given - wanted).abs().max() < 1e-5


def test_mmdets_own_swin_is_found_out(tmp_path):
    """It reads the file by itself, and leaves what it does not know random."""
    source = published.save(swin().state_dict(), tmp_path / 'x.pth')
    converted = convert(source, normalization='imagenet')
    out = str(tmp_path / 'out.pth')
    converted.save(out)
    config = settings(converted, 'mmdet', out)['model']['backbone']
    for kind in ('SwinTransformer', 'mmrobust.SwinTransformer'):
        model = nn.Module()
        model.backbone = DETECTION.build(ConfigDict(config, type=kind))
        model.backbone.init_weights()
        if kind == 'SwinTransformer':
            with pytest.raises(ConfigError, match=r"'mmrobust\.SwinTransformer'"):
                check_normalization(model)
        else:
            check_normalization(model)


def test_networks_with_meansparse_are_refused(tmp_path):
    state = swin().state_dict()
    start = 'layers.0.blocks.0.meansparse1.'
    state[start + 'flag_update_statistics'] = torch.tensor(0)
    source = published.save(published.robustbench(state), tmp_path / 'x.pt')
    with pytest.raises(ConfigError, match=r'operators of MeanSparse.*no place'):
        read_weights(source)
