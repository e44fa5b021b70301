"""The loss under attack is the training loss of the deployed function."""

from copy import deepcopy

import pytest
import torch
import tiny
from mmdet.registry import DATASETS, MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from torch import nn

from mmrobust.batch import float_images, split_batch
from mmrobust.frame import FramedDataset, attack_samples
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective, loss_mode

FAMILIES = sorted(tiny.FAMILIES)


def _model(family):
    torch.manual_seed(0)
    model = tiny.filled(MODELS.build(ConfigDict(tiny.FAMILIES[family]())))
    # Statistics of a model that has seen data, so that train and eval differ.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.train()


def _batch(coco, family, scale=(160, 120), count=2):
    masks = family == 'mask_rcnn'
    config = tiny.dataset(coco, True, masks=masks, scale=scale)
    dataset = FramedDataset(DATASETS.build(config))
    batch = pseudo_collate([dataset[i] for i in range(count)])
    samples = attack_samples(batch['data_samples'], 'cpu')
    return batch, samples


def _state(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [weight.requires_grad for weight in model.parameters()],
    )


def _unchanged(before, after):
    same = all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    return same and before[1:] == after[1:]


def _training_losses(model, batch, samples):
    """Training mode all over, but BatchNorm fixed and every kind of dropout off."""
    model = deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    data = {'inputs': batch['inputs'], 'data_samples': samples}
    data = model.data_preprocessor(data, True)
    torch.manual_seed(5)
    return model(**data, mode='loss')


@pytest.mark.parametrize('family', FAMILIES)
def test_loss_equals_the_training_loss_and_leaves_no_trace(coco, family):
    model = _model(family)
    batch, samples = _batch(coco, family)
    losses = _training_losses(model, batch, samples)
    denoising = {k for k in losses if k.split('.')[-1].startswith('dn_')}
    assert bool(denoising) == (family in ('dino', 'dn_detr'))
    wanted, _ = model.parse_losses(
        {k: v for k, v in losses.items() if k not in denoising}
    )
    before = _state(model)
    with loss_mode(model):
        oracle = LossOracle(model, batch, samples, Objective(), per_image=False)
        images = float_images(batch, 'cpu')
        torch.manual_seed(5)
        value, grads = oracle.value_and_grad(images)
        torch.manual_seed(5)
        again, same_grads = oracle.value_and_grad(images)
    torch.testing.assert_close(value[0], wanted.detach(), rtol=1e-5, atol=1e-6)
    assert _unchanged(before, _state(model))
    assert torch.equal(value, again)
    for grad, same, image in zip(grads, same_grads, images, strict=True):
        assert grad.shape == image.shape
        assert torch.isfinite(grad).all()
        assert grad.abs().sum() > 0
        assert torch.equal(grad, same)
    assert all(weight.grad is None for weight in model.parameters())


def test_flags_come_back_after_an_error():
    model = _model('fcos')
    model.backbone.eval()
    model.neck.requires_grad_(False)
    before = _state(model)
    with pytest.raises(RuntimeError, match='on purpose'), loss_mode(model):
        raise RuntimeError('on purpose')
    assert _unchanged(before, _state(model))


def test_plain_eval_mode_would_give_fcos_another_box_loss(coco):
    """With norm_on_bbox the head multiplies its predictions by the stride in eval."""
    model = _model('fcos')
    batch, samples = _batch(coco, 'fcos')

    def box_loss():
        data = {'inputs': batch['inputs'], 'data_samples': samples}
        return model(**model.data_preprocessor(data, False), mode='loss')['loss_bbox']

    with loss_mode(model):
        right = box_loss()
    model.eval()
    assert not torch.isclose(box_loss(), right, rtol=1e-3)


def test_denoising_queries_do_not_matter(coco):
    model = _model('dino')
    batch, samples = _batch(coco, 'dino', count=1)
    values = []
    with loss_mode(model):
        oracle = LossOracle(model, batch, samples, Objective())
        for seed in (1, 2):
            torch.manual_seed(seed)
            values.append(oracle.value(float_images(batch, 'cpu')))
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize('family', ['fcos', 'retinanet', 'detr'])
def test_an_image_does_not_depend_on_its_neighbours(coco, family):
    model = _model(family)
    batch, samples = _batch(coco, family, count=3)
    images = float_images(batch, 'cpu')
    with loss_mode(model):
        together = LossOracle(model, batch, samples, Objective()).value_and_grad(images)
        for i, single in enumerate(split_batch(batch)):
            oracle = LossOracle(model, single, samples[i : i + 1], Objective())
            value, grad = oracle.value_and_grad(images[i : i + 1])
            assert torch.equal(together[0][i], value[0])
            assert torch.equal(together[1][i], grad[0])


def test_the_oracle_counts_images(coco):
    model = _model('fcos')
    batch, samples = _batch(coco, 'fcos')
    with loss_mode(model):
        oracle = LossOracle(model, batch, samples, Objective())
        oracle.value(float_images(batch, 'cpu'))
        oracle.value_and_grad(float_images(batch, 'cpu'))
    assert (oracle.forwards, oracle.backwards) == (4, 2)


def test_terms_are_summed_as_parse_losses_does():
    one, two, three = (torch.tensor(float(v)) for v in (1, 2, 4))
    losses = {
        'loss_cls': [one, two],
        'loss_bbox': three,
        'd0.loss_cls': torch.tensor(8.0),
        'd0.dn_loss_cls': torch.tensor(16.0),
        'dn_loss_bbox': torch.tensor(32.0),
        'acc': torch.tensor(64.0),
    }
    assert Objective('total')(losses) == 1 + 2 + 4 + 8
    assert Objective('cls')(losses) == 1 + 2  # an exact name beats a stage's
    assert Objective('reg')(losses) == 4
    assert Objective(['d0.loss_cls', 'loss_bbox'])(losses) == 8 + 4
    assert Objective('cls').name == 'cls'
    assert Objective(['loss_cls', 'loss_bbox']).name == 'loss_cls+loss_bbox'


def test_stages_of_a_cascade_are_found():
    losses = {'s0.loss_cls': torch.tensor(1.0), 's1.loss_cls': torch.tensor(2.0)}
    assert Objective('cls')(losses) == 3


def test_stages_of_sparse_rcnn_are_found():
    losses = {f'stage{i}_loss_cls': torch.tensor(2.0**i) for i in range(3)}
    losses |= {'stage0_loss_bbox': torch.tensor(64.0)}
    losses |= {'some_loss_cls': torch.tensor(128.0), 'aux_loss_bbox': torch.tensor(1.0)}
    assert Objective('cls')(losses) == 1 + 2 + 4
    assert Objective('reg')(losses) == 64


def test_layers_that_compute_something_else_in_training_are_told():
    """By their outputs, and dropout by its flag."""
    from mmdet.models.backbones.trident_resnet import TridentBottleneck, TridentConv
    from mmdet.models.layers import DropBlock
    from mmdet.models.roi_heads.mask_heads import GridHead

    block = TridentBottleneck(
        inplanes=8,
        planes=2,
        trident_dilations=(1, 2, 3),
        test_branch_idx=1,
        concat_output=False,
    )
    grid = GridHead(
        num_convs=1, in_channels=9, conv_kernel_size=3, point_feat_channels=4
    )
    model = nn.ModuleList([block, grid, DropBlock(0.1, 3)]).eval()
    image, rois = torch.randn(1, 8, 6, 6), torch.randn(2, 9, 14, 14)

    def branches():
        return len(block(image))

    def differ():
        maps = grid(rois)
        return not torch.equal(maps['fused'], maps['unfused'])

    assert (branches(), differ()) == (1, False)
    with loss_mode(model):
        assert (branches(), differ()) == (3, True)
        told = {type(module) for module in model.modules() if module.training}
    assert told >= {TridentBottleneck, TridentConv, GridHead}
    assert DropBlock not in told
    assert (branches(), differ()) == (1, False)


def test_a_missing_term_is_named_with_those_that_exist():
    with pytest.raises(ConfigError, match='loss_heatmap, loss_wh'):
        Objective('cls')(
            {'loss_heatmap': torch.tensor(1.0), 'loss_wh': torch.tensor(1.0)}
        )
    with pytest.raises(ConfigError, match='total, cls, reg, cls\\+reg, cwa'):
        Objective('clss')
