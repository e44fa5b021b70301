"""The model families of mmdet (the folders of its own configs), at a size for a CPU.

What makes a model its family (classes, heads, losses, assigners) stays; depth, queries,
proposals and classes shrink.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

# The config that stands for a family, where it is not the one of the shortest name.
REPRESENTATIVES = {
    'cascade_rcnn': 'cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'centernet': 'centernet_r18-dcnv2_8xb16-crop512-140e_coco.py',
    'cityscapes': 'faster-rcnn_r50_fpn_1x_cityscapes.py',
    'crowddet': 'crowddet-rcnn_refine_r50_fpn_8xb2-30e_crowdhuman.py',
    'dcn': 'mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'dcnv2': 'mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
    'deformable_detr': 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'detectors': 'detectors_htc-r50_1x_coco.py',
    'detr': 'detr_r50_8xb2-150e_coco.py',
    'dyhead': 'atss_r50-caffe_fpn_dyhead_1x_coco.py',
    'empirical_attention': 'faster-rcnn_r50-attn1111-dcn_fpn_1x_coco.py',
    'fcos': 'fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    'foveabox': 'fovea_r50_fpn_gn-head-align_4xb4-2x_coco.py',
    'gcnet': 'mask-rcnn_r50-syncbn-gcb-r4-c3-c5_fpn_1x_coco.py',
    'grid_rcnn': 'grid-rcnn_r50_fpn_gn-head_2x_coco.py',
    'guided_anchoring': 'ga-faster-rcnn_r50_fpn_1x_coco.py',
    'hrnet': 'mask-rcnn_hrnetv2p-w18-1x_coco.py',
    'lad': 'lad_r50-paa-r101_fpn_2xb8_coco_1x.py',
    'legacy_1.x': 'mask-rcnn_r50_fpn_1x_coco_v1.py',
    'libra_rcnn': 'libra-faster-rcnn_r50_fpn_1x_coco.py',
    'mask2former': 'mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'nas_fpn': 'retinanet_r50_nasfpn_crop640-50e_coco.py',
    'objects365': 'faster-rcnn_r50_fpn_16xb4-1x_objects365v2.py',
    'openimages': 'faster-rcnn_r50_fpn_32xb2-1x_openimages.py',
    'pascal_voc': 'faster-rcnn_r50_fpn_1x_voc0712.py',
    'pisa': 'faster-rcnn_r50_fpn_pisa_1x_coco.py',
    'pvt': 'retinanet_pvt-t_fpn_1x_coco.py',
    'regnet': 'mask-rcnn_regnetx-400MF_fpn_ms-poly-3x_coco.py',
    'reppoints': 'reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py',
    'res2net': 'faster-rcnn_res2net-101_fpn_2x_coco.py',
    'retinanet': 'retinanet_r50_fpn_1x_coco.py',
    'rtmdet': 'rtmdet-ins_tiny_8xb32-300e_coco.py',
    'sabl': 'sabl-faster-rcnn_r50_fpn_1x_coco.py',
    'selfsup_pretrain': 'mask-rcnn_r50-mocov2-pre_fpn_1x_coco.py',
    'simple_copy_paste': 'mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_'
    '32xb2-ssj-270k_coco.py',
    'v3det': 'cascade_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x.py',
    'vfnet': 'vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py',
    'wider_face': 'retinanet_r50_fpn_1x_widerface.py',
    'yolox': 'yolox_tiny_8xb8-300e_coco.py',
}

# Folders without a model that trains on images and boxes alone.
_TRACKER = 'tracker of videos; the detector inside is of the family '
OUT_OF_SCOPE = {
    'bytetrack': _TRACKER + 'yolox',
    'common': 'schedules only, no model',
    'deepsort': _TRACKER + 'faster_rcnn',
    'glip': 'needs a pretrained language model (BERT)',
    'grounding_dino': 'needs a pretrained language model (BERT)',
    'mask2former_vis': 'segments videos, not images',
    'masktrack_rcnn': 'segments videos, not images',
    'misc': 'only wrappers of detectron2, a package of its own',
    'mm_grounding_dino': 'needs a pretrained language model (BERT)',
    'ocsort': _TRACKER + 'yolox',
    'qdtrack': _TRACKER + 'faster_rcnn',
    'reid': 'recognises persons again, detects nothing',
    'soft_teacher': 'semi-supervised: its batches have several branches',
    'sort': _TRACKER + 'faster_rcnn',
    'strongsort': _TRACKER + 'yolox',
}

# Upper limits of what is independent of everything else.
_LIMITS = {
    'feedforward_channels': 256,
    'nms_pre': 300,
    'num_convs': 2,
    'num_proposals': 10,
    'num_queries': 20,
    'stacked_convs': 2,
}


def config_root() -> Path:
    """Returns the folder of mmdet's own configs, one subfolder per family."""
    import mmdet

    return Path(mmdet.__file__).parent / '.mim/configs'


def families() -> list[str]:
    """Names all folders of configs."""
    return sorted(
        folder.name
        for folder in config_root().iterdir()
        if folder.is_dir() and folder.name != '_base_' and any(folder.glob('*.py'))
    )


def representative(family: str) -> Path:
    """Returns the config that stands for a family."""
    folder = config_root() / family
    names = sorted(
        (path.name for path in folder.glob('*.py')), key=lambda n: (len(n), n)
    )
    return folder / REPRESENTATIVES.get(family, names[0])


def tiny_model(config: str | os.PathLike | Config) -> ConfigDict:
    """Shrinks the model of a config and removes everything that is downloaded.

    Args:
        config: an mmdet config or its path.

    Returns:
        The model's config, for ``MODELS.build`` in mmdet's scope.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    model = deepcopy(cfg.model.to_dict())
    for part in dicts(model):
        _shrink(part)
    return ConfigDict(model)


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Yields all dicts inside a config, outer ones first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from dicts(inner)


def _shrink(part: dict[str, Any]) -> None:
    kind = str(part.get('type', ''))
    if 'checkpoint' in (part.get('init_cfg') or ()):
        part['init_cfg'] = None
    for key in ('pretrained', 'teacher_ckpt'):
        if key in part:
            part[key] = False if part[key] is True else None
    if isinstance(part.get('teacher_config'), str):
        # Relative to a checkout of mmdet: configs/gfl/...
        path = config_root() / part['teacher_config'].partition('configs/')[2]
        part['teacher_config'] = {'model': tiny_model(path)}
    if part.get('depth') == 101:
        part['depth'] = 50
    if kind == 'MMSyncBN':  # cannot even be built outside of a distributed run
        part['type'] = 'SyncBN'
    if kind == 'DeltaXYWHBBoxCoder' and 'clip_border' in part:
        # mmdet cannot paste masks outside of the image on a CPU, where a fresh
        # QueryInst puts some of its boxes.
        part['clip_border'] = True
    if kind == 'HourglassNet':
        part['stage_blocks'] = [1] * 6
        part['stage_channels'] = [256] * 6
    if isinstance(part.get('num_grids'), list):  # of SOLO, one per level
        part['num_grids'] = [min(count, 16) for count in part['num_grids']]
    if kind == 'SwinTransformer':
        part['depths'] = [2] * len(part['depths'])
    if part.get('num_classes', 0) > 200:
        part['num_classes'] = 80
    for key, most in _LIMITS.items():
        if isinstance(part.get(key), int):
            part[key] = min(part[key], most)
    for key, most, applies in (
        # SCNet adds features of this width to the boxes' own.
        ('fc_out_channels', 64, kind != 'SCNetBBoxHead'),
        ('num_points', 256, 'importance_sample_ratio' in part),
        ('num_layers', 2, 'layer_cfg' in part),
        ('num', 16, kind.endswith('Sampler')),
        # Of proposals, and of results. QueryInst has masks for all its proposals, so
        # that the latter must be as many as its num_proposals.
        ('max_per_img', 32, 'nms_pre' in part and 'score_thr' not in part),
        ('max_per_img', 10, 'nms_pre' not in part or 'score_thr' in part),
    ):
        if applies and key in part:
            part[key] = min(part[key], most)
    if kind == 'BatchFixedSizePad':
        part['size'] = (96, 96)
    if kind == 'BatchSyncRandomResize':
        part['random_size_range'] = (64, 128)
    if kind == 'BatchResize':
        part['scale'] = (96, 64)
