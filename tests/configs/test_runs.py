"""Configs train and are attacked as they stand, on small images."""

import json
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch
from config_files import parse, walk, without_downloads
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from mmrobust.evaluation import AttackTestLoop
from mmrobust.frame import FRAME
from mmrobust.training import AdvEpochBasedTrainLoop
from panoptic_data import STUFF, THINGS, make_panoptic


@pytest.fixture(autouse=True)
def _one_thread(_quiet_and_repeatable):
    """Threads wait for each other longer than these tiny detectors compute."""
    torch.set_num_threads(1)


def on_tiny_data(cfg, coco, work_dir):
    """The config with small images from the tiny dataset, otherwise as it is.

    One epoch of one batch of two images, tests of two images, one step an attack.
    """
    without_downloads(cfg)
    annotations = str(coco / 'annotations.json')
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg[key]
        loader.num_workers, loader.persistent_workers = 0, False
        loader.dataset.update(
            data_root=str(coco) + '/',
            ann_file=annotations,
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=tiny.CLASSES),
        )
        for transform in loader.dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (64, 48)
    for key in ('val_evaluator', 'test_evaluator'):
        cfg[key].ann_file = annotations
    for node in walk(cfg.model):
        if node.get('num_classes') == 80:
            node.num_classes = len(tiny.CLASSES)
        # What takes the time.
        if node.get('num') == 512:
            node.num = 32
        if 'nms_pre' in node:
            node.update(nms_pre=100, max_per_img=50)
        if 'encoder' not in cfg.model:
            widths = ('in_channels', 'out_channels', 'feat_channels')
            for key in (*widths, 'conv_out_channels'):
                if node.get(key) == 256:
                    node[key] = 64
        if node.get('type') == 'FCNMaskHead':
            node.num_convs = 1
        if node.get('type') == 'ResNet':
            node.update(depth=18, base_channels=16)
            cfg.model.neck.in_channels = [c // 16 for c in cfg.model.neck.in_channels]
        if node.get('type') == 'mmpretrain.ConvNeXt':
            node.arch = dict(depths=[1, 1, 2, 1], channels=[24, 48, 96, 192])
            cfg.model.neck.in_channels = [c // 4 for c in cfg.model.neck.in_channels]
        if node.get('type') == 'mmrobust.ViTConvStem':
            node.arch = dict(
                embed_dims=96, num_layers=3, num_heads=3, feedforward_channels=192
            )
            cfg.model.neck.in_channels = [96]
        if node.get('num_layers') == 6:
            node.num_layers = 2
        if 'fc_out_channels' in node:
            node.fc_out_channels = 64
        if 'num_queries' in node:
            node.num_queries = node.test_cfg.max_per_img = 30
        if node.get('feedforward_channels') == 2048:
            node.feedforward_channels = 256
        # An untrained FCOS finds nothing, and mmdet gives no metric for that.
        if 'score_thr' in node:
            node.score_thr, node.max_per_img = 0.0, 20
    cfg.train_cfg.max_epochs = 1
    cfg.train_dataloader.dataset.indices = cfg.val_dataloader.dataset.indices = 2
    cfg.param_scheduler[-1].milestones = [1]
    for attack in cfg.test_cfg.attacks.values():
        attack.update({} if attack.get('name') == 'noise' else dict(num_steps=1))
    cfg.test_cfg.num_images = 2
    cfg.default_hooks.checkpoint = None  # 340 MB
    cfg.default_hooks.attack_visualization.num_images = 1
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.parent.name
    cfg.log_level = 'ERROR'
    cfg.visualizer.vis_backends = []
    return cfg


def train_and_test(cfg):
    """The report of a test after a training of one batch."""
    runner = Runner.from_cfg(cfg)
    before = {n: w.detach().clone() for n, w in runner.model.named_parameters()}
    runner.train()
    assert isinstance(runner.train_loop, AdvEpochBasedTrainLoop)
    assert runner.iter == 4  # one batch of two images, four times
    moved = {
        name
        for name, weight in runner.model.named_parameters()
        if not torch.equal(weight.detach(), before[name])
    }
    assert any(name.startswith('backbone.') for name in moved)
    assert any('head' in name for name in moved)
    assert isinstance(runner.test_loop, AttackTestLoop)
    # mmdet's test pipelines resize before they load the boxes.
    (sample,) = runner.test_loop.images.load(0)['data_samples']
    assert sample.get(FRAME) == 'original'
    runner.test()
    report = json.loads((Path(cfg.work_dir) / 'robustness.json').read_text())
    assert report['complete'] is True
    assert report['checks'] == []  # cwa found its training set
    names = [attack['name'] for attack in report['attacks']]
    assert names == list(cfg.test_cfg.attacks)
    # A detector after two updates may gain from an attack or be dead in parts, and
    # the checks say so; the frame of the boxes they must not doubt.
    texts = [text for attack in report['attacks'] for text in attack['checks']]
    assert not [text for text in texts if 'outside' in text]
    return report


@pytest.mark.parametrize(
    'name',
    [
        'robust_fcos_convnext',
        'robust_fcos_vit-s-convstem',
        'robust_dn-detr_r50',
        'robust_mask-rcnn_r50',
        'paper/robust_fcos_r50',
    ],
)
def test_a_config_runs(name, coco, tmp_path, monkeypatch):
    """Trains and tests as it stands, on small images with one step per attack."""
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    report = train_and_test(on_tiny_data(parse(name), coco, tmp_path / 'work'))
    metrics = {'coco/bbox_mAP'} | ({'coco/segm_mAP'} if 'mask' in name else set())
    for found in (report['benign'], *report['attacks']):
        assert metrics <= set(found['metrics'])
        # Without objects to find, or without a metric's files, mmdet gives -1.
        assert all(0 <= found['metrics'][metric] <= 1 for metric in metrics)


@METRICS.register_module()
class AgreeingPixels(BaseMetric):
    """Share of pixels whose predicted class is that of the file.

    In place of panoptic quality, which needs the package panopticapi.
    """

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            predicted = sample['pred_panoptic_seg']['sem_seg'][0].cpu().numpy()
            assert predicted.shape == tuple(sample['ori_shape'])
            png = str(sample['seg_map_path'])
            ids = cv2.imread(png)[..., ::-1].astype(np.int64) @ [1, 256, 65536]
            truth = np.zeros_like(ids)
            for segment in sample['segments_info']:
                truth[ids == segment['id']] = segment['category']
            self.results.append(((predicted % 1000) == truth).mean())

    def compute_metrics(self, results):
        return dict(agreeing=float(np.mean(results)))


def test_panoptic_fpn_runs(coco, tmp_path, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    # All that mmdet's loading takes from a package that is on no package index.
    api = types.ModuleType('panopticapi')
    api.utils = types.SimpleNamespace(
        rgb2id=lambda colours: colours.astype(np.int64) @ [1, 256, 65536]
    )
    monkeypatch.setitem(sys.modules, 'panopticapi', api)
    root = make_panoptic(coco, tmp_path / 'data')
    cfg = parse('paper/robust_panoptic-fpn_r50')
    cfg = on_tiny_data(cfg, coco, tmp_path / 'work')
    for key in ('train_dataloader', 'test_dataloader', 'val_dataloader'):
        dataset = cfg[key].dataset
        dataset.update(
            ann_file=str(root / 'panoptic.json'),
            data_prefix=dict(img='images/', seg=str(root / 'panoptic')),
            metainfo=dict(
                classes=THINGS + STUFF, thing_classes=THINGS, stuff_classes=STUFF
            ),
        )
        if dataset.get('test_mode'):
            pack = dataset.pipeline[-1]
            pack.meta_keys += ('seg_map_path', 'segments_info')
    for node in walk(cfg.model):
        if 'num_things_classes' in node:
            node.update(num_things_classes=3, num_stuff_classes=2)
    cfg.val_evaluator = cfg.test_evaluator = dict(type='AgreeingPixels')
    report = train_and_test(cfg)
    for found in (report['benign'], *report['attacks']):
        assert 0 <= found['metrics']['agreeing'] <= 1
