"""Batches, updates and configs of trainings, as the tests of training share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from mmrobust.training import Adversary
from torch import Tensor, nn

Sizes = Sequence[tuple[int, int]]


NO_VALIDATION = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)


def free(**kwargs: Any) -> dict:
    return dict(type='mmrobust.FreeAdversary', **kwargs)


def pgd(**kwargs: Any) -> dict:
    return dict(type='mmrobust.PGDAdversary', **kwargs)


def epochs(max_epochs: int, adversary: dict | None, **kwargs: Any) -> dict:
    """train_cfg of a loop by epoch: mmengine's own, or ours with an adversary."""
    if adversary is None:
        return dict(type='EpochBasedTrainLoop', max_epochs=max_epochs)
    kind = 'mmrobust.AdvEpochBasedTrainLoop'
    return dict(type=kind, max_epochs=max_epochs, adversary=adversary, **kwargs)


def iters(max_iters: int, adversary: dict | None, **kwargs: Any) -> dict:
    """train_cfg of a loop by iteration."""
    if adversary is None:
        return dict(type='IterBasedTrainLoop', max_iters=max_iters)
    kind = 'mmrobust.AdvIterBasedTrainLoop'
    return dict(type=kind, max_iters=max_iters, adversary=adversary, **kwargs)


def checkpoints(interval: int = 1, by_epoch: bool = True, **kwargs: Any) -> dict:
    """default_hooks that save every so many passes or updates."""
    kind = 'CheckpointHook'
    return dict(
        timer=dict(type='IterTimerHook'),
        logger=dict(type='LoggerHook', interval=1000),
        param_scheduler=dict(type='ParamSchedulerHook'),
        checkpoint=dict(type=kind, interval=interval, by_epoch=by_epoch, **kwargs),
        sampler_seed=dict(type='DistSamplerSeedHook'),
    )


def make_batch(sizes: Sizes, seed: int, low: int = 0, high: int = 256) -> dict:
    """Images of uint8 noise with two boxes each, as PackDetInputs leaves them.

    The full range on purpose: at 0 and 255 the perturbation leaves the pixel range.
    """
    generator = torch.Generator().manual_seed(seed)
    images, samples = [], []
    for height, width in sizes:
        image = torch.randint(low, high, (3, height, width), generator=generator)
        images.append(image.to(torch.uint8))
        boxes = torch.tensor([[8.0, 8, 40, 40], [16, 20, 60, 52]])
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                batch_input_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        labels = torch.tensor([seed % 3, (seed + 1) % 3])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def make_model(config: dict | None = None) -> nn.Module:
    init_default_scope('mmdet')
    model = MODELS.build(config or tiny.fcos())
    model.init_weights()
    return model.train()


def sgd(model: nn.Module) -> OptimWrapper:
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))


class ScalingOptimWrapper(OptimWrapper):
    """What AmpOptimWrapper does with its loss scaler, on a CPU."""

    def __init__(self, *args: Any, scale: float = 1024.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


class Linear(BaseModel):
    """Two losses linear in the image, with weights that its sample carries."""

    def __init__(self) -> None:
        super().__init__(BaseDataPreprocessor(non_blocking=False))
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Any, data_samples: Any, mode: str) -> dict:
        losses = {'loss_cls': self.weight * 0, 'loss_bbox': self.weight * 0}
        for image, sample in zip(inputs, data_samples, strict=True):
            for name in losses:
                losses[name] = losses[name] + (sample.get(name) * image).sum()
        return losses


def linear_batch(*weights: tuple[list[float], list[float]]) -> dict:
    """One image of three grey pixels for every pair of weights (cls, reg)."""
    samples = []
    for cls, reg in weights:
        sample = DetDataSample(
            metainfo=dict(
                loss_cls=torch.tensor(cls).view(3, 1, 1),
                loss_bbox=torch.tensor(reg).view(3, 1, 1),
            )
        )
        samples.append(sample)
    images = [torch.full((3, 1, 1), 100, dtype=torch.uint8) for _ in weights]
    return dict(inputs=images, data_samples=samples)


def watch_inputs(model: nn.Module) -> list[list[Tensor]]:
    """Store the images of every forward pass, before the data preprocessor."""
    seen: list[list[Tensor]] = []

    def note(module: nn.Module, args: tuple) -> None:
        seen.append([image.detach().clone() for image in args[0]['inputs']])

    model.data_preprocessor.register_forward_pre_hook(note)
    return seen


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    """Parameters and buffers (BatchNorm statistics) are equal bit by bit."""
    theirs = second.state_dict()
    assert first.state_dict().keys() == theirs.keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def train(
    adversary: Adversary,
    model: nn.Module,
    batches: list[dict],
    wrapper: OptimWrapper | None = None,
) -> list[list[Tensor]]:
    """Updates with an adversary as its loop would; returns deltas after each update."""
    wrapper = wrapper or sgd(model)
    deltas, iteration = [], 0
    for batch in batches:
        for _ in range(adversary.replays):
            adversary.train_step(model, wrapper, batch, iteration)
            iteration += 1
            state = adversary.state_dict(iteration)
            deltas.append([delta.clone() for delta in state.get('deltas', ())])
    return deltas
