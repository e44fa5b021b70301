"""A synthetic batch with the annotations that a config's pipeline would load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData

from benchmarks.families import dicts
from benchmarks.language import CLASSES

# (height, width) of the two images: unequal, so that the batch is padded.
SIZES = ((64, 96), (96, 64))

# Whose layers are made for one input size, or for maps that are not too small.
_FIXED_SIZES: dict[str, tuple[int, int]] = {
    'DetectoRS_ResNet': (96, 96),
    'SSDVGG': (300, 300),
    'HourglassNet': (64, 64),
    'LADHead': (96, 128),  # enough anchors for its mixture model
}


def tiny_batch(config: Config, model: dict[str, Any]) -> dict[str, Any]:
    """Makes two small images that the config's pipeline could have loaded.

    Args:
        config: the mmdet config, whose training pipeline is looked at.
        model: its shrunk model.

    Returns:
        As :func:`synthetic_batch`.
    """
    kinds = _pipeline(config)
    keeps_ratio = kinds.get('Resize', {}).get('keep_ratio', True)
    equal = 'Pad' in kinds or not keeps_ratio
    sizes = [SIZES[0]] * 2 if equal else list(SIZES)
    for part in dicts(model):
        if part.get('type') in _FIXED_SIZES:
            sizes = [_FIXED_SIZES[part['type']]] * 2
    return synthetic_batch(config, model, sizes)


def synthetic_batch(
    config: Config, model: dict[str, Any], sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Makes images with the annotations that the config's pipeline would load.

    Args:
        config: the mmdet config, whose training pipeline is looked at.
        model: its model, which says how many classes there are.
        sizes: (height, width) of every image.

    Returns:
        A batch as the data loader yields it: ``inputs``, uint8 images (3, H, W), and
        ``data_samples`` with horizontal boxes and, where the pipeline loads them,
        bitmap or polygon masks, a semantic map and proposals; for a model that reads
        them also the names of its classes.
    """
    kinds = _pipeline(config)
    load = kinds.get('LoadPanopticAnnotations', kinds.get('LoadAnnotations', {}))
    panoptic = 'LoadPanopticAnnotations' in kinds
    rescale = kinds.get('SegRescale', {}).get('scale_factor', 1)
    classes = [part['num_classes'] for part in dicts(model) if 'num_classes' in part]
    inputs, samples = [], []
    for index, (height, width) in enumerate(sizes):
        draw = Drawing(height, width, min(classes, default=80), seed=index)
        sample = draw.sample()
        if panoptic or load.get('with_mask'):
            poly = not panoptic and not load.get('poly2mask', True)
            sample.gt_instances.masks = draw.polygons() if poly else draw.bitmaps()
        if panoptic or load.get('with_seg'):
            step = round(1 / rescale)
            sample.gt_sem_seg = PixelData(sem_seg=draw.semantic()[:, ::step, ::step])
        if 'language_model' in model:
            sample.set_metainfo({'text': CLASSES, 'custom_entities': True})
        if 'LoadProposals' in kinds:
            sample.proposals = draw.proposals()
        inputs.append(draw.image)
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}


def _pipeline(config: Config) -> dict[str, dict[str, Any]]:
    """Finds all with a type in the training loader, transforms included."""
    loads = dicts(config.to_dict().get('train_dataloader', {}))
    return {str(part.get('type')): part for part in loads}


class Drawing:
    """An image of noise with brighter rectangles, and what is known about them."""

    def __init__(self, height: int, width: int, num_classes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.height, self.width = height, width
        self.image = torch.randint(0, 160, (3, height, width), generator=generator)
        self.image = self.image.to(torch.uint8)
        # As shares of the image: a large, a middle and (second image) a small object.
        shares = [(0.1, 0.15, 0.7, 0.8), (0.5, 0.4, 0.85, 0.75), (0.05, 0.6, 0.3, 0.85)]
        scale = torch.tensor([width, height, width, height])
        self.boxes = (torch.tensor(shares[: 2 + seed]) * scale).round()
        self.labels = torch.arange(len(self.boxes)) % min(num_classes, 3)
        for box, label in zip(self.boxes.int().tolist(), self.labels, strict=True):
            self.image[:, box[1] : box[3], box[0] : box[2]] //= 2
            self.image[int(label), box[1] : box[3], box[0] : box[2]] += 150

    def sample(self) -> Any:
        """Makes the sample without masks."""
        from mmdet.structures import DetDataSample
        from mmdet.structures.bbox import HorizontalBoxes

        shape = (self.height, self.width)
        sample = DetDataSample(
            metainfo={
                'img_id': len(self.boxes),
                'img_path': f'{len(self.boxes)}.png',
                'ori_shape': shape,
                'img_shape': shape,
                'scale_factor': (1.0, 1.0),
                'flip': False,
                'flip_direction': None,
                'border': np.array([0.0, self.height, 0.0, self.width]),  # of CenterNet
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(self.boxes.clone()), labels=self.labels.clone()
        )
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)),
            labels=torch.zeros(0, dtype=torch.long),
        )
        return sample

    def bitmaps(self) -> Any:
        """Makes bitmaps of the rectangles."""
        from mmdet.structures.mask import BitmapMasks

        masks = np.zeros((len(self.boxes), self.height, self.width), dtype=np.uint8)
        for mask, box in zip(masks, self.boxes.int().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        return BitmapMasks(masks, self.height, self.width)

    def polygons(self) -> Any:
        """Makes polygons of the rectangles."""
        from mmdet.structures.mask import PolygonMasks

        corners = [[0, 1, 2, 1, 2, 3, 0, 3]] * len(self.boxes)
        polygons = [
            [box.numpy()[corner]]
            for box, corner in zip(self.boxes, corners, strict=True)
        ]
        return PolygonMasks(polygons, self.height, self.width)

    def semantic(self) -> torch.Tensor:
        """Makes a class map (1, H, W): stuff 81 above 82, objects, ignored borders."""
        labels = torch.full((1, self.height, self.width), 82)
        labels[:, : self.height // 2] = 81
        for box, label in zip(self.boxes.int().tolist(), self.labels, strict=True):
            labels[:, box[1] : box[3], box[0] : box[2]] = label
        labels[..., :4] = 255
        return labels

    def proposals(self) -> InstanceData:
        """Makes boxes around the objects and somewhere else."""
        generator = torch.Generator().manual_seed(len(self.boxes))
        noise = torch.randn(16, len(self.boxes), 4, generator=generator) * 4
        moved = (self.boxes + noise).reshape(-1, 4)
        scale = torch.tensor([self.width, self.height])
        centres, sides = torch.rand(2, 32, 2, generator=generator) * scale
        other = torch.cat([centres - sides / 4, centres + sides / 4], dim=1)
        boxes = torch.cat([moved, other])
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, self.width)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, self.height)
        return InstanceData(
            bboxes=boxes, scores=torch.rand(len(boxes), generator=generator)
        )
