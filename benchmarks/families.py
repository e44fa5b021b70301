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

from benchmarks.language import tiny_bert

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
    'glip': 'glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py',
    'grid_rcnn': 'grid-rcnn_r50_fpn_gn-head_2x_coco.py',
    'grounding_dino': 'grounding_dino_swin-t_finetune_16xb2_1x_coco.py',
    'guided_anchoring': 'ga-faster-rcnn_r50_fpn_1x_coco.py',
    'hrnet': 'mask-rcnn_hrnetv2p-w18-1x_coco.py',
    'lad': 'lad_r50-paa-r101_fpn_2xb8_coco_1x.py',
    'legacy_1.x': 'mask-rcnn_r50_fpn_1x_coco_v1.py',
    'libra_rcnn': 'libra-faster-rcnn_r50_fpn_1x_coco.py',
    'mask2former': 'mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'mm_grounding_dino': 'grounding_dino_swin-t_pretrain_obj365.py',
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

# Configs that stand beside the family's own, by what the table calls them.
BESIDES = {
    'dino (Swin-L)': 'dino/dino-5scale_swin-l_8xb2-12e_coco.py',
    'rtmdet (boxes)': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
}

# Of mmdet's projects, which a checkout has and no package, those with a detector.
PROJECTS = {
    'AlignDETR': 'configs/align_detr-4scale_r50_8xb2-12e_coco.py',
    'CO-DETR': 'configs/codino/co_dino_5scale_r50_8xb2_1x_coco.py',
    'ConvNeXt-V2': 'configs/mask-rcnn_convnext-v2-b_fpn_lsj-3x-fcmae_coco.py',
    'DiffusionDet': 'configs/diffusiondet_r50_fpn_500-proposals_1-step_'
    'crop-ms-480-800-450k_coco.py',
    'EfficientDet': 'configs/efficientdet_effb0_bifpn_8xb16-crop512-300e_coco.py',
    'HDINO': 'h-dino-4scale_r50_8xb2-12e_coco.py',
    'SparseInst': 'configs/sparseinst_r50_iam_8xb8-ms-270k_coco.py',
    'ViTDet': 'configs/vitdet_mask-rcnn_vit-b-mae_lsj-100e.py',
    'example_project': 'configs/faster-rcnn_dummy-resnet_fpn_1x_coco.py',
    'iSAID': 'configs/mask_rcnn_r50_fpn_1x_isaid.py',
}
_PROJECT = 'projects/'
PROJECTS_OUT_OF_SCOPE = {
    'projects/Detic': 'predicts only: its loss is not written',
    'projects/Detic_new': "needs CLIP's embeddings of class names, a file of its own",
    'projects/LabelStudio': 'a labelling tool, no model',
    'projects/RF100-Benchmark': 'other data for the families faster_rcnn, tood, dino',
    'projects/VISION-Datasets': 'descriptions of data, no model',
    'projects/XDecoder': 'predicts only: its loss is not written',
    'projects/example_largemodel': 'the family dino (Swin-L) under FSDP and DeepSpeed',
    'projects/gradio_demo': 'a demonstration page, no model',
}

# Folders without a model that trains on images and boxes alone.
_TRACKER = 'tracker of videos; the detector inside is of the family '
OUT_OF_SCOPE = {
    'bytetrack': _TRACKER + 'yolox',
    'common': 'schedules only, no model',
    'deepsort': _TRACKER + 'faster_rcnn',
    'mask2former_vis': 'segments videos, not images',
    'masktrack_rcnn': 'segments videos, not images',
    'misc': 'only wrappers of detectron2, a package of its own',
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
    'num_query': 20,
    'num_query_one2one': 10,
    'stacked_convs': 2,
}


def config_root() -> Path:
    """Returns the folder of mmdet's own configs, one subfolder per family."""
    import mmdet

    return Path(mmdet.__file__).parent / '.mim/configs'


def families(checkout: str | os.PathLike | None = None) -> list[str]:
    """Names all folders of configs, with those of a checkout's projects if given."""
    folders = [
        folder.name
        for folder in config_root().iterdir()
        if folder.is_dir() and folder.name != '_base_' and any(folder.glob('*.py'))
    ]
    projects = [_PROJECT + name for name in PROJECTS] if checkout else []
    return sorted([*folders, *BESIDES]) + projects


def representative(family: str, checkout: str | os.PathLike | None = None) -> Path:
    """Returns the config that stands for a family.

    Args:
        family: see :func:`families`.
        checkout: of mmdet, where it is one of the projects.
    """
    if family in BESIDES:
        return config_root() / BESIDES[family]
    if family.startswith(_PROJECT):
        name = family.removeprefix(_PROJECT)
        return Path(checkout or '', family, PROJECTS[name])
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
    if 'all_layers_num_gt_repeat' in part:  # of AlignDETR, one per layer and encoder
        part['all_layers_num_gt_repeat'] = part['all_layers_num_gt_repeat'][-3:]
    for key in ('num_cp', 'with_cp'):  # so many layers are checkpointed, by fairscale
        if type(part.get(key)) is int:
            part[key] = 0
    if kind == 'BertModel':
        part['name'] = tiny_bert()
    if 'lang_model_name' in part:
        part['lang_model_name'] = tiny_bert()
    if kind == 'HourglassNet':
        part['stage_blocks'] = [1] * 6
        part['stage_channels'] = [256] * 6
    if isinstance(part.get('num_grids'), list):  # of SOLO, one per level
        part['num_grids'] = [min(count, 16) for count in part['num_grids']]
    if kind == 'ViT':  # of ViTDet
        part['depth'] = 2
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
