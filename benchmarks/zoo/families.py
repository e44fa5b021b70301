"""The families of mmdet's models: the folders of its own configs."""

from __future__ import annotations

from pathlib import Path

# The config that stands for a family, where it is not its first one.
REPRESENTATIVES = {
    'atss': 'atss_r50_fpn_1x_coco.py',
    'boxinst': 'boxinst_r50_fpn_ms-90k_coco.py',
    'carafe': 'mask-rcnn_r50_fpn-carafe_1x_coco.py',
    'cascade_rcnn': 'cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'centernet': 'centernet_r18-dcnv2_8xb16-crop512-140e_coco.py',
    'convnext': 'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
    'cornernet': 'cornernet_hourglass104_8xb6-210e-mstest_coco.py',
    'crowddet': 'crowddet-rcnn_refine_r50_fpn_8xb2-30e_crowdhuman.py',
    'dcn': 'mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'dcnv2': 'mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
    'deformable_detr': 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'detectors': 'detectors_htc-r50_1x_coco.py',
    'detr': 'detr_r50_8xb2-150e_coco.py',
    'empirical_attention': 'faster-rcnn_r50-attn1111-dcn_fpn_1x_coco.py',
    'fast_rcnn': 'fast-rcnn_r50_fpn_1x_coco.py',
    'faster_rcnn': 'faster-rcnn_r50_fpn_1x_coco.py',
    'fcos': 'fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    'foveabox': 'fovea_r50_fpn_gn-head-align_4xb4-2x_coco.py',
    'fpg': 'mask-rcnn_r50_fpg_crop640-50e_coco.py',
    'free_anchor': 'freeanchor_r50_fpn_1x_coco.py',
    'fsaf': 'fsaf_r50_fpn_1x_coco.py',
    'gcnet': 'mask-rcnn_r50-syncbn-gcb-r4-c3-c5_fpn_1x_coco.py',
    'gfl': 'gfl_r50_fpn_1x_coco.py',
    'ghm': 'retinanet_r50_fpn_ghm-1x_coco.py',
    'gn': 'mask-rcnn_r50_fpn_gn-all_2x_coco.py',
    'gn+ws': 'mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py',
    'grid_rcnn': 'grid-rcnn_r50_fpn_gn-head_2x_coco.py',
    'groie': 'mask-rcnn_r50_fpn_groie_1x_coco.py',
    'guided_anchoring': 'ga-faster-rcnn_r50_fpn_1x_coco.py',
    'hrnet': 'mask-rcnn_hrnetv2p-w18-1x_coco.py',
    'htc': 'htc_r50_fpn_1x_coco.py',
    'instaboost': 'mask-rcnn_r50_fpn_instaboost-4x_coco.py',
    'lad': 'lad_r50-paa-r101_fpn_2xb8_coco_1x.py',
    'ld': 'ld_r18-gflv1-r101_fpn_1x_coco.py',
    'legacy_1.x': 'mask-rcnn_r50_fpn_1x_coco_v1.py',
    'libra_rcnn': 'libra-faster-rcnn_r50_fpn_1x_coco.py',
    'lvis': 'mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
    'mask2former': 'mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    'mask_rcnn': 'mask-rcnn_r50_fpn_1x_coco.py',
    'maskformer': 'maskformer_r50_ms-16xb1-75e_coco.py',
    'ms_rcnn': 'ms-rcnn_r50_fpn_1x_coco.py',
    'nas_fcos': 'nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py',
    'nas_fpn': 'retinanet_r50_nasfpn_crop640-50e_coco.py',
    'objects365': 'faster-rcnn_r50_fpn_16xb4-1x_objects365v2.py',
    'openimages': 'faster-rcnn_r50_fpn_32xb2-1x_openimages.py',
    'paa': 'paa_r50_fpn_1x_coco.py',
    'panoptic_fpn': 'panoptic-fpn_r50_fpn_1x_coco.py',
    'pascal_voc': 'faster-rcnn_r50_fpn_1x_voc0712.py',
    'pisa': 'faster-rcnn_r50_fpn_pisa_1x_coco.py',
    'pvt': 'retinanet_pvt-t_fpn_1x_coco.py',
    'queryinst': 'queryinst_r50_fpn_1x_coco.py',
    'regnet': 'mask-rcnn_regnetx-400MF_fpn_ms-poly-3x_coco.py',
    'reppoints': 'reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py',
    'res2net': 'faster-rcnn_res2net-101_fpn_2x_coco.py',
    'resnest': 'mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco.py',
    'resnet_strikes_back': 'mask-rcnn_r50-rsb-pre_fpn_1x_coco.py',
    'retinanet': 'retinanet_r50_fpn_1x_coco.py',
    'rpn': 'rpn_r50_fpn_1x_coco.py',
    'rtmdet': 'rtmdet-ins_tiny_8xb32-300e_coco.py',
    'sabl': 'sabl-faster-rcnn_r50_fpn_1x_coco.py',
    'scnet': 'scnet_r50_fpn_1x_coco.py',
    'scratch': 'mask-rcnn_r50-scratch_fpn_gn-all_6x_coco.py',
    'seesaw_loss': 'mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py',
    'solo': 'solo_r50_fpn_1x_coco.py',
    'solov2': 'solov2_r50_fpn_1x_coco.py',
    'sparse_rcnn': 'sparse-rcnn_r50_fpn_1x_coco.py',
    'strong_baselines': 'mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_'
    'lsj-50e_coco.py',
    'swin': 'mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'timm_example': 'retinanet_timm-tv-resnet50_fpn_1x_coco.py',
    'tood': 'tood_r50_fpn_1x_coco.py',
    'vfnet': 'vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py',
    'wider_face': 'retinanet_r50_fpn_1x_widerface.py',
    'yolact': 'yolact_r50_1xb8-55e_coco.py',
    'yolo': 'yolov3_d53_8xb8-320-273e_coco.py',
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


def config_root() -> Path:
    """The folder of mmdet's own configs, one subfolder per family."""
    import mmdet

    return Path(mmdet.__file__).parent / '.mim/configs'


def families() -> list[str]:
    """Names of all folders of configs."""
    return sorted(
        folder.name
        for folder in config_root().iterdir()
        if folder.is_dir() and folder.name != '_base_' and any(folder.glob('*.py'))
    )


def representative(family: str) -> Path:
    """The config that stands for a family."""
    folder = config_root() / family
    return folder / REPRESENTATIVES.get(family, sorted(folder.glob('*.py'))[0].name)
