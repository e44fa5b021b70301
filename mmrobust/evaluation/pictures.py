"""Pictures of one attacked image, drawn with mmengine's visualizer."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor

_TRUTH, _DETECTION = (0, 200, 0), (230, 40, 40)
_MIN_SIDE = 320
_TITLE_HEIGHT = 28


def attack_picture(
    visualizer: Visualizer,
    clean: Tensor,
    attacked: Tensor,
    clean_output: BaseDataElement,
    attacked_output: BaseDataElement,
    truth: BaseDataElement,
    score_thr: float,
    name: str,
) -> np.ndarray:
    """Draws clean | attacked | amplified difference.

    Args:
        visualizer: whose drawing functions are used; its image is replaced.
        clean: loader's image (3, H, W), BGR, or grey (1, H, W), 0-255.
        attacked: the adversarial image, same shape.
        clean_output: prediction on the clean image, boxes in the original frame.
        attacked_output: prediction on the attacked image.
        truth: ground truth in the input frame.
        score_thr: detections below it are not drawn.
        name: of the attack, for the title.

    Returns:
        RGB picture, uint8 (height, width, 3).
    """
    delta = _rgb(attacked) - _rgb(clean)
    largest = max(float(np.abs(delta).max()), 1e-6)
    factor = max(1, int(127 / largest))
    scale = max(1, round(_MIN_SIDE / min(clean.shape[1:])))
    classes = (visualizer.dataset_meta or {}).get('classes')
    panels = [
        (f'clean: {_found(clean_output, score_thr, classes)}', _rgb(clean)),
        (f'{name}: {_found(attacked_output, score_thr, classes)}', _rgb(attacked)),
        (f'difference x {factor} (largest {largest:.1f})', 128 + factor * delta),
    ]
    outputs = [clean_output, attacked_output, None]
    drawn = []
    for (title, pixels), output in zip(panels, outputs, strict=True):
        image = np.ascontiguousarray(pixels.round().clip(0, 255).astype(np.uint8))
        image = cv2.resize(
            image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST
        )
        if output is not None:
            image = _draw(visualizer, image, output, truth, score_thr, scale)
        drawn.append(_titled(image, title))
    height = max(image.shape[0] for image in drawn)
    drawn = [
        np.pad(
            image, ((0, height - image.shape[0]), (0, 6), (0, 0)), constant_values=255
        )
        for image in drawn
    ]
    return np.concatenate(drawn, axis=1)


def _rgb(image: Tensor) -> np.ndarray:
    array = image.float().cpu().numpy().transpose(1, 2, 0)[..., ::-1]
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def _kept(output: BaseDataElement, score_thr: float) -> Any:
    if 'pred_instances' not in output:  # a panoptic segmentation or a class
        return ()
    instances = output.pred_instances
    return instances[instances.scores >= score_thr]


def _found(output: BaseDataElement, score_thr: float, classes: Any) -> str:
    if 'pred_label' in output:
        label = int(output.pred_label)
        score = float(output.pred_score[label])
        return f'{classes[label] if classes else label} ({score:.2f})'
    if 'pred_instances' not in output:
        return 'no boxes predicted'
    count = len(_kept(output, score_thr))
    return f'{count} detection' + ('' if count == 1 else 's')


def _draw(
    visualizer: Visualizer,
    image: np.ndarray,
    output: BaseDataElement,
    truth: BaseDataElement,
    score_thr: float,
    scale: int,
) -> np.ndarray:
    classes = (visualizer.dataset_meta or {}).get('classes')
    visualizer.set_image(image)
    boxes = truth.gt_instances.bboxes if 'gt_instances' in truth else ()
    boxes = boxes.tensor if hasattr(boxes, 'tensor') else boxes
    if len(boxes):
        visualizer.draw_bboxes(
            boxes * scale, edge_colors=_TRUTH, line_widths=2, line_styles='--'
        )
    found = _kept(output, score_thr)
    if len(found):
        # Predictions come in the original image's frame.
        factors = found.bboxes.new_tensor(output.get('scale_factor', (1.0, 1.0)))
        boxes = found.bboxes * factors.repeat(2) * scale
        limits = boxes.new_tensor(image.shape[1::-1]).repeat(2)
        boxes = boxes.clamp(min=boxes.new_zeros(4), max=limits - 1)
        visualizer.draw_bboxes(boxes, edge_colors=_DETECTION, line_widths=2)
        labels = [
            f'{classes[label] if classes else int(label)} {score:.2f}'
            for label, score in zip(found.labels, found.scores, strict=True)
        ]
        visualizer.draw_texts(
            labels,
            boxes[:, :2],
            font_sizes=11,
            colors='white',
            bboxes=[
                {'facecolor': 'black', 'alpha': 0.6, 'pad': 0.5, 'edgecolor': 'none'}
            ]
            * len(labels),
        )
    return visualizer.get_image()


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((_TITLE_HEIGHT, image.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, title, (4, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, 16)
    return np.concatenate([bar, image])
