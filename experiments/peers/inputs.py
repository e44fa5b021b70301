"""The detector and the images that every attack of the comparison gets."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData
from mmrobust import cli
from mmrobust.batch import float_images, image_id, split_batch, with_images
from mmrobust.errors import ConfigError
from mmrobust.evaluation import choose_images, restrict_metrics
from mmrobust.frame import FramedDataset, attack_samples, count_boxes_outside
from mmrobust.objective import LossOracle, Objective, classes_of, loss_mode
from mmrobust.utils.seeding import derive_seed, seeded
from mmrobust.weights import check_checkpoint, read_checkpoint
from torch import Tensor

CPU = torch.device('cpu')


@dataclass
class Batch:
    """Some images, with what an attack may know of them.

    Attributes:
        data: what the data loader yields.
        samples: the ground truth in the frame of the network's input.
        images: clean images (C, H, W) in pixel units of 0-255.
        seeds: one of each image.
    """

    data: dict
    samples: list[Any]
    images: list[Tensor]
    seeds: list[int]

    def split(self) -> list[Batch]:
        """A batch of each image."""
        parts = zip(
            split_batch(self.data), self.samples, self.images, self.seeds, strict=True
        )
        return [Batch(data, [s], [image], [seed]) for data, s, image, seed in parts]


@dataclass
class Setup:
    """A detector with its images, and the metric if there are weights to measure.

    Attributes:
        terms: the losses that are attacked, as mmrobust's attacks take them.
        losses: their names.
        other_losses: the names of the others.
    """

    model: Any
    batches: list[Batch]
    terms: str | list[str]
    losses: list[str]
    other_losses: list[str]
    evaluator: Evaluator | None

    @property
    def num_images(self) -> int:
        """The number of images in all batches."""
        return sum(len(batch.images) for batch in self.batches)

    def average_precision(self, found: Sequence[Sequence[Tensor]]) -> float | None:
        """AP of the stock prediction on other images, one list for every batch."""
        if self.evaluator is None:
            return None
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            for batch, images in zip(self.batches, found, strict=True):
                for part, image in zip(batch.split(), images, strict=True):
                    attacked = with_images(part.data, [image])
                    outputs = self.model.test_step(attacked)
                    self.evaluator.process(data_samples=outputs, data_batch=attacked)
            metrics = self.evaluator.evaluate(self.num_images)
        # No metric at all is CocoMetric's answer to no detection at all.
        return next((v for k, v in metrics.items() if k.endswith('mAP')), 0.0)

    def loss(self, found: Sequence[Sequence[Tensor]]) -> float:
        """Mean over images of the loss that is attacked, on every image by itself."""
        values = []
        with loss_mode(self.model):
            for batch, images in zip(self.batches, found, strict=True):
                for part, image in zip(batch.split(), images, strict=True):
                    oracle = LossOracle(
                        self.model, part.data, part.samples, Objective(self.terms)
                    )
                    with seeded(part.seeds[0], CPU):
                        values.append(float(oracle.value([image])))
        return sum(values) / len(values)


def set_up(args: argparse.Namespace) -> Setup:
    """Loads what the command line names.

    Raises:
        ConfigError: if config, checkpoint, data or losses cannot be used.
    """
    cfg = cli.configure(args)
    if args.checkpoint is not None:
        read_checkpoint(args.checkpoint)  # before anything is built
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    evaluator = None
    if args.checkpoint is None:
        if 'backbone' in cfg.model:
            cfg.model.backbone.init_cfg = None  # nothing to download
        model = MODELS.build(cfg.model)
        with seeded(args.seed, CPU):
            model.init_weights()
        items = _noise_images(args.num_images, args.size, classes_of(model), args.seed)
        frame = 'input'
    else:
        model = MODELS.build(cfg.model)
        check_checkpoint(args.checkpoint, model)
        load_checkpoint(model, args.checkpoint, map_location='cpu')
        items, frame, evaluator = _data(cfg, args.num_images)
    model.eval()
    batches = [
        _batch(items[i : i + args.batch_size], frame, args.seed)
        for i in range(0, len(items), args.batch_size)
    ]
    if sum(count_boxes_outside(batch.samples) for batch in batches):
        raise ConfigError('boxes lie outside their image: check the test pipeline.')
    terms = args.losses or 'total'
    return Setup(model, batches, terms, *_names(model, batches[0], terms), evaluator)


def _data(cfg: Config, num_images: int) -> tuple[list[dict], str, Evaluator]:
    """Images of the test set, the frame of their boxes, and the metric."""
    # The same images whatever the seed of the attacks.
    loader: Any = choose_images(cfg.test_dataloader, num_images, seed=0)
    dataset = loader['dataset']
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    restrict_metrics(evaluator, dataset)
    framed = FramedDataset(dataset)
    return [framed[index] for index in range(len(dataset))], 'auto', evaluator


def _noise_images(count: int, size: int, num_classes: int, seed: int) -> list[dict]:
    """Square images of blurred noise, each with four boxes."""
    draw = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        coarse = torch.rand(1, 3, 16, 16, generator=draw) * 255
        image = F.interpolate(coarse, size=(size, size), mode='bilinear')[0]
        corners = torch.rand(4, 2, generator=draw) * size * 0.6
        sides = (0.1 + torch.rand(4, 2, generator=draw) * 0.3) * size
        labels = torch.randint(num_classes, (4,), generator=draw)
        sample = DetDataSample(
            gt_instances=InstanceData(
                bboxes=torch.cat([corners, corners + sides], 1), labels=labels
            ),
            ignored_instances=InstanceData(
                bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
            ),
            metainfo={
                'img_id': index,
                'img_shape': (size, size),
                'ori_shape': (size, size),
                'scale_factor': (1.0, 1.0),
            },
        )
        items.append({'inputs': image.to(torch.uint8), 'data_samples': sample})
    return items


def _batch(items: list[dict], frame: str, seed: int) -> Batch:
    data = pseudo_collate(items)
    samples = data['data_samples']
    return Batch(
        data,
        attack_samples(samples, CPU, frame),
        float_images(data, CPU),
        [derive_seed(seed, image_id(sample)) for sample in samples],
    )


def _names(
    model: Any, batch: Batch, terms: str | list[str]
) -> tuple[list[str], list[str]]:
    """Names of the model's loss terms that are attacked, and of the others."""
    part = batch.split()[0]
    data = model.data_preprocessor(
        {'inputs': part.images, 'data_samples': part.samples}, False
    )
    with loss_mode(model), torch.no_grad(), seeded(part.seeds[0], CPU):
        losses = model(**data, mode='loss')
    names = Objective(terms).select(losses)
    return names, [key for key in losses if 'loss' in key and key not in names]
