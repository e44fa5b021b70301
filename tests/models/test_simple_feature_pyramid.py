"""ViTDet's neck: levels, a plain re-computation, and detectors that train on it."""

import pytest
import tiny
import torch
from convstem_reference import ChannelNorm, randomise
from mmdet.models.necks import FPN
from mmdet.registry import MODELS as DETECTORS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData
from mmrobust.errors import ConfigError
from mmrobust.registry import MODELS
from torch.nn import functional as F

# As mmdet's configs of Faster R-CNN and FCOS set their FPN.
FASTER_RCNN = dict(num_outs=5)
FCOS = dict(
    num_outs=5,
    start_level=1,
    add_extra_convs='on_output',
    relu_before_extra_convs=True,
)


def build(in_channels=16, **kwargs):
    kwargs = dict(out_channels=8, **kwargs)
    kind = 'mmrobust.SimpleFeaturePyramid'
    return MODELS.build(dict(type=kind, in_channels=in_channels, **kwargs))


@pytest.mark.parametrize('settings', [FASTER_RCNN, FCOS], ids=['faster-rcnn', 'fcos'])
@pytest.mark.parametrize('size', [(64, 96), (128, 32)])
def test_the_levels_are_those_of_an_fpn(settings, size):
    """For images with sides of multiples of 32, as mmdet pads them."""
    height, width = size
    strides = [4, 8, 16, 32]
    fpn = FPN(in_channels=[4, 4, 4, 4], out_channels=8, **settings)
    expected = fpn([torch.zeros(2, 4, height // s, width // s) for s in strides])
    neck = build([16], **settings)
    found = neck([torch.zeros(2, 16, height // 16, width // 16)])
    assert isinstance(found, tuple)
    assert [out.shape for out in found] == [out.shape for out in expected]
    first = 8 if settings is FCOS else 4
    assert found[0].shape == (2, 8, height // first, width // first)


def test_strides_that_are_left_out_have_no_weights():
    neck = build(num_outs=2, start_level=2)
    assert [tuple(out.shape[2:]) for out in neck([torch.zeros(1, 16, 3, 5)])] == [
        (3, 5),
        (2, 3),
    ]
    assert not any(isinstance(m, torch.nn.ConvTranspose2d) for m in neck.modules())


def norm(x, layer):
    own = ChannelNorm(x.shape[1])
    own.load_state_dict(layer.state_dict())
    return own(x)


def test_by_hand():
    neck = randomise(build(**dict(FCOS, start_level=0, num_outs=6)))
    x = torch.randn(1, 16, 4, 6)

    def double(x, layer):
        """Each pixel becomes 2 x 2 pixels of its own."""
        n, _, h, w = x.shape
        blocks = torch.einsum('nihw,iouv->nohuwv', x, layer.weight)
        return blocks.reshape(n, -1, 2 * h, 2 * w) + layer.bias.view(-1, 1, 1)

    def finish(x, layers):
        x = torch.einsum('nihw,oi->nohw', x, layers[0].weight[..., 0, 0])
        x = norm(x, layers[1])
        return norm(F.conv2d(x, layers[2].weight, padding=1), layers[3])

    four, eight, sixteen, thirtytwo = neck.levels
    up = F.gelu(norm(double(x, four[0]), four[1]))
    expected = [
        finish(double(up, four[3]), four[4:]),
        finish(double(x, eight[0]), eight[1:]),
        finish(x, sixteen),
        finish(x.reshape(1, 16, 2, 2, 3, 2).amax((3, 5)), thirtytwo[1:]),
    ]
    for index, conv in enumerate(neck.extra_convs):
        before = expected[-1].relu() if index else expected[-1]
        expected.append(F.conv2d(before, conv.weight, conv.bias, stride=2, padding=1))
    found = neck([x])
    assert len(found) == 6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert [m.weight.shape[:2] for m in (four[0], four[3], eight[0])] == [
        (16, 8),
        (8, 4),
        (16, 8),
    ]


@pytest.mark.parametrize('settings', [FASTER_RCNN, FCOS], ids=['faster-rcnn', 'fcos'])
def test_every_output_reaches_the_map(settings):
    neck = build(**settings)
    neck.init_weights()
    x = torch.randn(1, 16, 4, 4, requires_grad=True)
    for index in range(5):
        (gradient,) = torch.autograd.grad(neck([x])[index].square().sum(), x)
        assert gradient.abs().max() > 0, index
    torch.stack([out.square().sum() for out in neck([x])]).sum().backward()
    assert all(p.grad is not None for p in neck.parameters())


def test_what_is_refused():
    for wrong, message in (
        (dict(in_channels=[8, 16], num_outs=4), 'must be one number'),
        (dict(in_channels=18, num_outs=4), 'a multiple of 4'),
        (dict(num_outs=4, start_level=4), 'starts at level 0 to 3'),
        (dict(num_outs=5, add_extra_convs=True), "must be False or 'on_output'"),
        (dict(num_outs=5, add_extra_convs='on_input'), "False or 'on_output'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(**wrong)
    neck = build(num_outs=4)
    for inputs in ([torch.zeros(1, 16, 4, 4)] * 2, [torch.zeros(1, 16)]):
        with pytest.raises(ConfigError, match="out_type of a ViT to 'featmap'"):
            neck(inputs)


VITS = {
    'vit': dict(
        type='mmrobust.ViTConvStem',
        arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64),
        out_type='featmap',
    ),
    'deit3': dict(
        type='mmrobust.DeiT3ConvStem',
        arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64),
        out_type='featmap',
    ),
    'isotropic': dict(
        type='mmrobust.ConvNeXtIsotropic',
        arch=dict(depths=[3], channels=[32]),
        convstem=True,
        gap_before_final_norm=False,
    ),
}


def make_batch(*sizes):
    images, samples = [], []
    for size in sizes:
        sample = DetDataSample(metainfo=dict(img_shape=size, pad_shape=size))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[10.0, 12.0, 60.0, 70.0]]), labels=torch.tensor([1])
        )
        samples.append(sample)
        images.append(torch.randint(0, 256, (3, *size)).float())
    return images, samples


@pytest.mark.parametrize(
    ('family', 'backbone', 'frozen'),
    [
        ('fcos', 'vit', 2),
        ('faster_rcnn', 'vit', 0),
        ('faster_rcnn', 'deit3', 2),
        ('fcos', 'isotropic', 0),
    ],
)
def test_detectors_train(family, backbone, frozen):
    """A step on images of two sizes, and the gradient that an attack follows."""
    cfg = tiny.FAMILIES[family]()
    cfg['backbone'] = dict(VITS[backbone], frozen_stages=frozen)
    cfg['neck'].update(type='mmrobust.SimpleFeaturePyramid', in_channels=[32])
    cfg['neck'].update(start_level=1 if family == 'fcos' else 0)
    model = DETECTORS.build(ConfigDict(cfg))
    model.init_weights()
    model.train()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith('backbone.') for name in learning)
    stem = {name for name in learning if 'projection' in name or 'downsample' in name}
    assert bool(stem) is (frozen == 0)
    for sizes in (((96, 128), (81, 110)), ((100, 70),)):
        leaves, samples = make_batch(*sizes)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        model.zero_grad()
        batch = model.data_preprocessor(dict(inputs=leaves, data_samples=samples), True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        loss.backward()
        for leaf in leaves:
            assert leaf.grad.isfinite().all()
            reached = leaf.grad.abs().sum(0) > 0
            assert reached.float().mean() > 0.9
            assert reached[-1].any()
            assert reached[:, -1].any()
        # Distributed training needs a gradient for everything that learns.
        with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
        assert with_gradient == learning
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    images, samples = make_batch((96, 128), (81, 110))
    model.train_step(dict(inputs=images, data_samples=samples), wrapper)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any(name.startswith('backbone.') for name in moved)
    assert any(name.startswith('neck.levels.0') for name in moved)
    assert moved <= learning
