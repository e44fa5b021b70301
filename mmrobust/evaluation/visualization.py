"""Draws attacked images, for the report's page and for the visualizer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor

from ..batch import image_id
from ..errors import short
from ..frame import TO_INPUT, attack_samples
from ..registry import HOOKS
from ..report import is_number
from ..utils.files import replacing
from .segments import paint_segments, segments_of

_TRUTH, _DETECTION = (0, 200, 0), (230, 40, 40)
_MIN_SIDE, _MAX_SIDE = 320, 2400  # of an enlarged image
_TITLE_HEIGHT = 28
_LETTER = 8, 16  # width and height of a letter of a label, pixels
# By itself OpenCV encodes runs alone, and pictures of enlarged pixels get three times
# as large.
PNG = (cv2.IMWRITE_PNG_COMPRESSION, 6)


class _Drawing:
    """Draws the images whose benign predictions it remembers: the first of the set.

    Args:
        count: how many images.
        score_thr: detections below it are not drawn.
    """

    def __init__(self, count: int, score_thr: float) -> None:
        self.count = count
        self.score_thr = score_thr
        self.clean: dict[Any, BaseDataElement] = {}
        self._inputs: dict[Any, Tensor] = {}

    def remember(self, key: Any, output: BaseDataElement, image: Tensor) -> None:
        """Takes an image and its benign prediction, if it is among the first ones."""
        if len(self.clean) < self.count:
            self.clean[key], self._inputs[key] = output.cpu(), image

    def draw(
        self,
        visualizer: Visualizer,
        gt_frame: str,
        attack: str,
        key: Any,
        attacked: Tensor,
        output: BaseDataElement,
        sample: BaseDataElement,
    ) -> np.ndarray | None:
        """Draws an image under an attack, see :func:`attack_picture`.

        Args:
            visualizer: whose drawing functions are used.
            gt_frame: of the ground truth, see :func:`mmrobust.frame.attack_samples`.
            attack: its name.
            key: id of the image, or what stands for it.
            attacked: the network's input (C, H, W), 0-255, under attack.
            output: the prediction on it.
            sample: the data loader's, with the ground truth.

        Returns:
            None for an image that is not among the first ones, and, with a warning, for
            one that cannot be drawn: an evaluation of hours goes on without a picture.
        """
        if key not in self.clean:
            return None
        try:
            (truth,) = attack_samples([sample], 'cpu', gt_frame)
            images = self._inputs[key], attacked
            outputs = self.clean[key], output
            return attack_picture(
                visualizer, *images, *outputs, truth, self.score_thr, attack
            )
        except Exception as error:
            text = f'image {key} under {attack} cannot be drawn: {short(str(error))}'
            print_log(text, logger='current', level=logging.WARNING)
            return None


class Gallery:
    """Draws the first images of the set under every attack, for the report's page.

    Args:
        visualizer: whose drawing functions are used.
        count: images per attack.
        gt_frame: of the ground truth, see :func:`mmrobust.frame.attack_samples`.
    """

    def __init__(self, visualizer: Visualizer, count: int, gt_frame: str) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self._folders: dict[str, Path] = {}
        self._most: dict[str, int | None] = {}
        self._drawing = _Drawing(count if is_main_process() else 0, score_thr=0.3)
        self.remember = self._drawing.remember
        self.visualizer = visualizer
        self.gt_frame = gt_frame

    def start(self, attack: str, folder: Path | None, most: int | None = None) -> None:
        """Begins an attack.

        Args:
            attack: its name.
            folder: of its records, beside which its pictures are kept; None for a
                temporary folder.
            most: fewer images than of other attacks.
        """
        self._most[attack] = most
        above = Path(self._temporary.name) / quote(attack, safe='')
        self._folders[attack] = (above if folder is None else folder) / 'pictures'
        self._folders[attack].mkdir(parents=True, exist_ok=True)

    def draw(self, attack: str, key: Any, *image: Any) -> None:
        """Draws an image under an attack, if it is among the first ones.

        Args:
            attack: its name.
            key: id of the image, or what stands for it.
            *image: see :meth:`_Drawing.draw`.
        """
        if key not in self._keys(attack):
            return
        picture = self._drawing.draw(
            self.visualizer, self.gt_frame, attack, key, *image
        )
        if picture is not None:
            with replacing(self._path(attack, key)) as temporary:
                mmcv.imwrite(picture[..., ::-1], str(temporary), PNG)

    def lacks(self, attack: str, key: Any) -> bool:
        """Returns whether the image is to be drawn under an attack, and is not yet."""
        return key in self._keys(attack) and not self._path(attack, key).is_file()

    def pictures(self) -> list[tuple[str, Path]]:
        """Returns titles and files of what was drawn, image by image."""
        paths = [
            (f'{attack}, image {key}', self._path(attack, key))
            for key in self._drawing.clean
            for attack in self._folders
        ]
        return [(title, path) for title, path in paths if path.is_file()]

    def _keys(self, attack: str) -> list[Any]:
        return list(self._drawing.clean)[: self._most[attack]]

    def _path(self, attack: str, key: Any) -> Path:
        name = quote(str(key), safe='')[-100:]
        return self._folders[attack] / f'{name}.png'


@HOOKS.register_module()
class AttackVisualizationHook(Hook):
    """Draws clean image | attacked image | amplified difference.

    With the detections on either image and the ground truth. mmdet's own
    DetVisualizationHook reads the picture from disk again and would draw the attacked
    boxes on the clean image. Pictures go through the runner's visualizer to all its
    backends (files, TensorBoard, ...).

    Args:
        num_images: images to draw per attack and process, the first ones of the set.
        score_thr: detections below this score are not drawn.
        out_dir: write PNG files to this folder of the run's log directory instead of
            handing them to the visualizer's backends.
    """

    def __init__(
        self, num_images: int = 8, score_thr: float = 0.3, out_dir: str | None = None
    ) -> None:
        self.out_dir = out_dir
        self._drawing = _Drawing(num_images, score_thr)

    def before_test_epoch(self, runner: Runner) -> None:
        """Forgets the images of an earlier evaluation."""
        self._drawing.clean.clear()

    before_val_epoch = before_test_epoch

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Remembers the benign detections of the images that will be drawn."""
        images = (data_batch or {}).get('inputs', ())
        for output, image in zip(outputs or (), images, strict=False):
            self._drawing.remember(image_id(output), output, image)

    after_val_iter = after_test_iter

    @master_only
    def after_test_epoch(
        self, runner: Runner, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Hands a test's figures to the visualizer's backends.

        Those of a validation mmengine hands over itself, attacked ones among them.
        """
        numbers = {k: float(v) for k, v in (metrics or {}).items() if is_number(v)}
        if numbers:
            # Asking for the iteration would build the training, data and all.
            trained = isinstance(runner._train_loop, BaseLoop)
            step = runner.iter if trained else 0
            runner.visualizer.add_scalars(numbers, step=step)

    @master_only
    def after_attack_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        adversarial: Sequence[Tensor],
        outputs: Sequence[BaseDataElement],
        attack: str,
        gt_frame: str,
    ) -> None:
        """Draws the images of one attacked batch."""
        for attacked, output, sample in zip(
            adversarial, outputs, data_batch['data_samples'], strict=True
        ):
            key = image_id(output)
            picture = self._drawing.draw(
                *(runner.visualizer, gt_frame, attack, key),
                *(attacked, output, sample),
            )
            if picture is None:
                continue
            # An id may be a path, as WIDER FACE's are.
            name = f'attack_{attack}_{quote(str(key), safe="")}'
            if self.out_dir is None:
                step = list(self._drawing.clean).index(key)
                runner.visualizer.add_image(name, picture, step)
            else:
                folder = Path(runner.work_dir, runner.timestamp, self.out_dir)
                path = folder / 'attacks' / f'{name}.png'
                mmcv.imwrite(picture[..., ::-1], str(path))


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
    attacked, attacked_output = attacked.detach().cpu(), attacked_output.cpu()
    delta = _rgb(attacked) - _rgb(clean)
    largest = max(float(np.abs(delta).max()), 1e-6)
    factor = max(1, int(127 / largest))
    sides = clean.shape[1:]
    scale = max(1, min(round(_MIN_SIDE / min(sides)), _MAX_SIDE // max(sides)))
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
    # All of one height, with a white gap between them.
    drawn = [
        np.pad(each, ((0, 0), (0, 6), (0, 0)), constant_values=255) for each in drawn
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
    if 'pred_instances' in output:
        what, count = 'detection', len(_kept(output, score_thr))
    elif 'pred_panoptic_seg' in output:
        what, count = 'segment', len(segments_of(output, len(classes or ()))[1])
    else:
        return 'no boxes predicted'
    return f'{count} {what}' + ('' if count == 1 else 's')


def _draw(
    visualizer: Visualizer,
    image: np.ndarray,
    output: BaseDataElement,
    truth: BaseDataElement,
    score_thr: float,
    scale: int,
) -> np.ndarray:
    meta = visualizer.dataset_meta or {}
    classes = meta.get('classes')
    segments: list[tuple[list[float], str, float]] = []
    if 'pred_panoptic_seg' in output and 'pred_instances' not in output:
        image, segments = paint_segments(image, output, truth, scale, meta)
    visualizer.set_image(image)
    boxes = truth.gt_instances.bboxes if 'gt_instances' in truth else ()
    boxes = boxes.tensor if hasattr(boxes, 'tensor') else boxes
    if len(boxes):
        visualizer.draw_bboxes(
            _inside(torch.as_tensor(boxes) * scale, image),
            edge_colors=_TRUTH,
            line_widths=2,
            line_styles='--',
        )
    if segments:
        places, labels, areas = map(list, zip(*segments, strict=True))
        _write(visualizer, places, labels, areas, image.shape)
    found = _kept(output, score_thr)
    if len(found):
        # Predictions come in the original image's frame.
        if to_input := truth.get(TO_INPUT, None):
            boxes = found.bboxes.new_tensor(to_input.boxes(found.bboxes)) * scale
        else:
            factors = found.bboxes.new_tensor(output.get('scale_factor', (1.0, 1.0)))
            boxes = found.bboxes * factors.repeat(2) * scale
        boxes = _inside(boxes, image)
        visualizer.draw_bboxes(boxes, edge_colors=_DETECTION, line_widths=2)
        labels = [
            f'{classes[label] if classes else int(label)} {score:.2f}'
            for label, score in zip(found.labels, found.scores, strict=True)
        ]
        # Above the boxes, whose objects are to be seen.
        above = boxes[:, :2] - boxes.new_tensor([0, _LETTER[1]])
        _write(visualizer, above.tolist(), labels, found.scores.tolist(), image.shape)
    return visualizer.get_image()


def _inside(boxes: Tensor, image: np.ndarray) -> Tensor:
    """Cuts boxes off: the picture would grow by what lies outside of it."""
    limits = boxes.new_tensor(image.shape[1::-1]).repeat(2)
    return boxes.clamp(min=boxes.new_zeros(4), max=limits - 1)


def _write(
    visualizer: Visualizer,
    corners: Sequence[Sequence[float]],
    labels: Sequence[str],
    scores: Sequence[float],
    shape: Sequence[int],
) -> None:
    """Writes labels from their corners on, inside the picture (height, width, ...).

    Those that would hide one of a higher score are left out.
    """
    ends = torch.tensor([(_LETTER[0] * len(text), _LETTER[1]) for text in labels])
    room = (torch.tensor(shape[1::-1]) - ends).clamp(min=0)
    places = torch.tensor(corners).clamp(min=0).minimum(room)
    shown = readable(places.tolist(), labels, scores)
    box = {'facecolor': 'black', 'alpha': 0.6, 'pad': 0.5, 'edgecolor': 'none'}
    visualizer.draw_texts(
        [labels[place] for place in shown],
        places[shown],
        font_sizes=11,
        colors='white',
        bboxes=[box] * len(shown),
    )


def readable(
    corners: Sequence[Sequence[float]], labels: Sequence[str], scores: Sequence[float]
) -> list[int]:
    """Returns the places of labels that hide none of a higher score.

    Args:
        corners: where each begins, (x, y) of its left upper corner, pixels.
        labels: their texts.
        scores: the highest one is always shown.
    """
    shown: list[int] = []
    edges = [
        (x, y, x + _LETTER[0] * len(text), y + _LETTER[1])
        for (x, y), text in zip(corners, labels, strict=True)
    ]
    for place in sorted(range(len(labels)), key=lambda place: -scores[place]):
        left, top, right, bottom = edges[place]
        hides = any(
            left < edges[other][2]
            and edges[other][0] < right
            and top < edges[other][3]
            and edges[other][1] < bottom
            for other in shown
        )
        if not hides:
            shown.append(place)
    return shown


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((_TITLE_HEIGHT, image.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, title, (4, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, 16)
    return np.concatenate([bar, image])
