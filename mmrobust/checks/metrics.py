"""Checks that the metrics of an evaluator can score a dataset at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.evaluator import Evaluator

from ..errors import ConfigError

# A metric's name to the figure of our analysis of boxes or masks that is near it.
_SAME_FIGURE = {
    'bbox': {'bbox_mAP': 'mAP', 'bbox_mAP_50': 'mAP_50', 'AP50': 'mAP_50'},
    'segm': {'segm_mAP': 'mAP', 'segm_mAP_50': 'mAP_50'},
}
# VOC counts boxes a little otherwise than COCO; other frames make it a multiple.
_LEAST_GAP, _LEAST_SHARE = 0.05, 0.25
_LEAST_GAP_OF_PQ = 0.1  # in percent; both follow one definition


def check_metrics(evaluator: Evaluator, dataset: Any) -> list[str]:
    """Refuses metrics that give no figure, or fail when all images are predicted.

    Args:
        evaluator: as the loop has it.
        dataset: the evaluated one.

    Returns:
        Sentences for the report's checks.

    Raises:
        ConfigError: if metrics only write files, or read an annotation file of other
            images.
    """
    metrics = evaluator.metrics
    if metrics and all(getattr(metric, 'format_only', False) for metric in metrics):
        raise ConfigError(
            f'format_only=True of {type(metrics[0]).__name__} writes predictions and '
            'computes no figure, and an attack needs figures: leave it out.'
        )
    # Each metric of mmdet's evaluator of several datasets has images of its own.
    if hasattr(evaluator, 'dataset_prefixes') or not hasattr(dataset, 'get_data_info'):
        return []
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    ours = {info.get('img_id') for info in infos}
    found = []
    for metric in metrics:
        api: Any = getattr(metric, '_coco_api', None)
        name = type(metric).__name__
        if not hasattr(api, 'getImgIds'):
            continue
        theirs = set(api.getImgIds())
        whole = not scores_image_by_image(metric)
        if odd := sorted(ours - theirs, key=str):
            raise ConfigError(
                f'the annotation file of {name} lacks {len(odd)} of the {len(ours)} '
                f'images of the dataset, such as img_id {odd[0]}: give it the ann_file '
                'of the dataset.'
            )
        if whole and set(getattr(metric, 'img_ids', None) or theirs) - ours:
            found.append(
                f'the annotation file of {name} has {len(theirs)} images and the '
                f'dataset {len(ours)} of them: objects on the others count as missed; '
                'choose images by num_images, which the metric knows of.'
            )
    return found


def scores_image_by_image(metric: Any) -> bool:
    """Whether a metric scores no image but those it is given, whatever its file has.

    So does mmdet's CocoPanopticMetric, unless it is to write its results to files.
    """
    return getattr(metric, 'tmp_dir', None) is not None and hasattr(
        metric, 'seg_prefix'
    )


def figures_disagree(
    metrics: Mapping[str, Any], found: Mapping[str, Any] | None, iou_type: str = 'bbox'
) -> list[str]:
    """Notices that a metric scores the same detections otherwise than their analysis.

    Args:
        metrics: of a pass, by name.
        found: what the analysis of boxes or masks says of it, which reads the
            annotations themselves; None if there is none.
        iou_type: ``'bbox'`` for boxes, ``'segm'`` for masks.

    Returns:
        A sentence for the report's checks, if they disagree.
    """
    if not found:
        return []
    ours = {'mAP': found['mAP']['estimate'], 'mAP_50': found.get('mAP_50')}
    name = 'masks' if iou_type == 'segm' else 'boxes'
    for key, value in metrics.items():
        figure = ours.get(_SAME_FIGURE[iou_type].get(key.split('/')[-1], ''))
        if figure is None or not isinstance(value, float):
            continue
        gap = abs(value - figure)
        if gap > max(_LEAST_GAP, _LEAST_SHARE * max(value, figure)):
            return [
                f'{key} is {value:.3f}, and the same {name} have {figure:.3f} against '
                'the annotations: the metric compares them with something else; one '
                'that reads ground truth off the samples, as VOCMetric does, needs '
                'LoadAnnotations behind the transforms that move boxes.'
            ]
    return []


def qualities_disagree(
    metrics: Mapping[str, Any], found: Mapping[str, Any] | None
) -> list[str]:
    """Notices that a metric gives the same segments another PQ than their analysis.

    Args:
        metrics: of a pass, by name.
        found: what the panoptic analysis says of it; None if there is none.

    Returns:
        A sentence for the report's checks, if they disagree.
    """
    if not found:
        return []
    figure = found['PQ']['estimate']
    return [
        f'{key} is {value:.2f}, and the same segments have PQ {figure:.2f} in this '
        'report: the metric takes crowds or unlabelled pixels otherwise, see '
        '"Panoptic quality" in docs/evaluation.md.'
        for key, value in metrics.items()
        if key.split('/')[-1] == 'PQ' and abs(value - figure) > _LEAST_GAP_OF_PQ
    ]
