"""The model that is measured, with its optimizer and one batch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmrobust.batch import float_images, split_batch, take
from mmrobust.frame import attack_samples
from mmrobust.objective import Inputs, Objective, classifier_samples, is_classifier
from torch import Tensor

from benchmarks.examine import settle
from benchmarks.families import dicts
from benchmarks.synthetic import synthetic_batch


class Subject:
    """A model of a config with random weights, on one batch of its training set.

    Nothing is downloaded, and nothing is learnt: the learning rate is 0, so that all
    sides of a comparison see the same weights.

    Args:
        cfg: config of a detector or classifier; it is changed.
        device: where the model is.
        size: (height, width) of synthetic images; None for the config's own data.
        batch_size: images in the batch; None for the config's own number.

    Attributes:
        model: the bare model, in training mode.
        batch: as the training loader yields it.
        wrapper: the config's optimizer.
    """

    def __init__(
        self,
        cfg: Config,
        device: torch.device | str,
        size: tuple[int, int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        model_cfg = _without_downloads(cfg)
        torch.manual_seed(0)
        self.model: Any = MODELS.build(deepcopy(model_cfg))
        self.model.init_weights()
        # As the Runner does without a distributed run.
        self.model = revert_sync_batchnorm(self.model)
        self.classifier = is_classifier(self.model)
        batch_size = batch_size or cfg.get('train_dataloader', {}).get('batch_size', 2)
        if size is None:
            self.batch = _own_batch(cfg, batch_size)
        elif self.classifier:
            self.batch = _classifier_batch(model_cfg, size, batch_size)
        else:
            self.batch = synthetic_batch(cfg, model_cfg.to_dict(), [size] * batch_size)
        if not self.classifier:
            settle(self.model, take(self.batch, [0]))  # on the CPU: one image
        self.model.to(self.device).train()
        cfg.optim_wrapper.pop('accumulative_counts', None)  # every update is one
        self.wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        for group in self.wrapper.param_groups:
            group['lr'] = 0.0

    def learn(self, batch: dict | None = None) -> None:
        """Makes a stock update, on the own batch by default."""
        batch = self.batch if batch is None else batch
        self.model.train_step(batch, optim_wrapper=self.wrapper)

    def images(self) -> list[Tensor]:
        """Returns new copies of the batch's images in pixel units."""
        return float_images(self.batch, self.device)

    def attacked(self) -> tuple[dict, list[Any]]:
        """Returns what an evaluation attacks at once, and its ground truth.

        Of a detector the batch's first image, of a classifier all of them.
        """
        part = self.batch if self.classifier else split_batch(self.batch)[0]
        return part, self.samples(part)

    def samples(self, batch: dict) -> list[Any]:
        """Returns the ground truth of a batch as attacks get it."""
        if self.classifier:
            return classifier_samples(batch['data_samples'], self.device)
        return attack_samples(batch['data_samples'], self.device, 'input')

    def describe(self) -> str:
        """Describes the batch in words."""
        shapes = {tuple(image.shape[-2:]) for image in self.batch['inputs']}
        sizes = ', '.join(f'{height} x {width}' for height, width in sorted(shapes))
        return f'batch of {len(self.batch["inputs"])} images of {sizes}'


def loss(
    subject: Subject,
    images: Sequence[Tensor],
    samples: Sequence[Any],
    objective: Objective | None = None,
    prepare: Inputs | None = None,
) -> Tensor:
    """Makes one forward pass of images together, with nothing around it.

    Args:
        subject: whose model it is.
        images: images (C, H, W) in pixel units.
        samples: their ground truth.
        objective: what is summed up, the total loss by default.
        prepare: does the work on the samples once for several passes.
    """
    if prepare is not None:
        data = prepare(images, samples)
    else:
        inputs = torch.stack(list(images)) if subject.classifier else list(images)
        batch = {'inputs': inputs, 'data_samples': list(samples)}
        data = subject.model.data_preprocessor(batch)
    return (objective or Objective())(subject.model(**data, mode='loss'))


def _without_downloads(cfg: Config) -> Any:
    """Removes the backbone's weights from the model's config, and returns it."""
    for part in dicts(cfg.model):
        if 'checkpoint' in (part.get('init_cfg') or ()):
            part['init_cfg'] = None
        if 'pretrained' in part:
            part['pretrained'] = None
    if 'data_preprocessor' in cfg:  # mmpretrain's configs have it beside the model
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg.model


def _own_batch(cfg: Config, batch_size: int) -> dict:
    loader = cfg.train_dataloader
    loader.batch_size, loader.num_workers = batch_size, 0
    for key in ('persistent_workers', 'prefetch_factor'):
        loader.pop(key, None)
    return next(iter(Runner.build_dataloader(loader, seed=0)))


def _classifier_batch(model: Any, size: tuple[int, int], count: int) -> dict:
    from mmpretrain.structures import DataSample

    classes = [part['num_classes'] for part in dicts(model) if 'num_classes' in part]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size), generator=generator)
    samples = []
    for index in range(count):
        sample = DataSample(metainfo={'img_shape': size, 'ori_shape': size})
        samples.append(sample.set_gt_label(index % min(classes, default=2)))
    return {'inputs': images.to(torch.uint8), 'data_samples': samples}
