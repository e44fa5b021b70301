"""Tiny detectors of mmdet train and predict on what stands in for the operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.structures import InstanceData

from mmrobust import compat

compat.install()

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules

HEIGHT, WIDTH = 96, 128
CONFIGS = {
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'faster_rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mask_rcnn': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'deformable_detr': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
}
LOSSES = {
    'fcos': {'loss_cls', 'loss_bbox', 'loss_centerness'},
    'faster_rcnn': {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox'},
    'mask_rcnn': {'loss_rpn_cls', 'loss_bbox', 'loss_mask'},
    'deformable_detr': {'loss_cls', 'loss_bbox', 'loss_iou', 'd0.loss_cls'},
}


def shrink_roi_head(head: ConfigDict) -> None:
    """Make the second stage 16 channels wide."""
    head.bbox_roi_extractor.out_channels = 16
    head.bbox_head.update(in_channels=16, fc_out_channels=16)
    if 'mask_head' in head:
        head.mask_roi_extractor.out_channels = 16
        head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1)


def tiny(name: str) -> ConfigDict:
    """Return mmdet's own config of a detector with a few thousand weights."""
    model = get_config(f'mmdet::{CONFIGS[name]}').model
    model.backbone.update(
        depth=18, base_channels=8, frozen_stages=-1, init_cfg=None, style='pytorch'
    )
    model.neck.in_channels = [8, 16, 32, 64]
    model.neck.out_channels = 32
    if name == 'deformable_detr':
        model.neck.in_channels = [16, 32, 64]
        model.num_queries = 20
        model.positional_encoding.num_feats = 16
        for part in (model.encoder, model.decoder):
            part.num_layers = 2
            layer = part.layer_cfg
            layer.ffn_cfg.update(embed_dims=32, feedforward_channels=32)
            layer.self_attn_cfg.embed_dims = 32
            if 'cross_attn_cfg' in layer:
                layer.cross_attn_cfg.embed_dims = 32
        model.bbox_head.embed_dims = 32
    elif name == 'fcos':
        model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
    else:
        model.neck.out_channels = 16
        model.rpn_head.update(in_channels=16, feat_channels=16)
        shrink_roi_head(model.roi_head)
        model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=30)
        model.test_cfg.rpn.update(nms_pre=50, max_per_img=30)
        model.test_cfg.rcnn.score_thr = 0.0
    return model


def batch() -> dict:
    """Return two images of random pixels with two objects each."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, HEIGHT, WIDTH)
    inputs, samples = [], []
    for _ in range(2):
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        masks = np.zeros((2, HEIGHT, WIDTH), dtype=np.uint8)
        masks[0, 10:50, 8:60] = 1
        masks[1, 40:90, 50:120] = 1
        sample = DetDataSample(
            metainfo={
                'img_shape': shape[1:],
                'ori_shape': shape[1:],
                'scale_factor': (1.0, 1.0),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 10.0, 60.0, 50.0], [50.0, 40.0, 120.0, 90.0]]),
            labels=torch.tensor([1, 3]),
            masks=BitmapMasks(masks, HEIGHT, WIDTH),
        )
        inputs.append(pixels)
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}


@pytest.mark.parametrize('name', sorted(CONFIGS))
def test_trains_and_predicts(name: str) -> None:
    register_all_modules()
    torch.manual_seed(0)
    detector = MODELS.build(tiny(name))
    detector.init_weights()

    detector.train()
    data = detector.data_preprocessor(batch(), training=True)
    leaf = data['inputs'].requires_grad_()
    losses = detector(leaf, data['data_samples'], mode='loss')
    assert losses.keys() >= LOSSES[name]
    total, _ = detector.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert total > 0
    assert leaf.grad.isfinite().all()
    assert (leaf.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    for key, weight in detector.named_parameters():
        if weight.grad is not None:
            assert weight.grad.isfinite().all(), key
    trained = sum(w.grad is not None for w in detector.parameters())
    assert trained == sum(w.requires_grad for w in detector.parameters())

    detector.eval()
    data = detector.data_preprocessor(batch(), training=False)
    with torch.no_grad():
        results = detector(data['inputs'], data['data_samples'], mode='predict')
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert found.bboxes.shape == (len(found), 4)
        assert found.bboxes.isfinite().all()
        assert (found.scores >= 0).all()
        assert (found.scores <= 1).all()
        if name != 'fcos':  # FCOS drops scores below 0.05, all of an untrained one
            assert len(found) > 0
        if name == 'mask_rcnn':
            assert found.masks.shape == (len(found), HEIGHT, WIDTH)
