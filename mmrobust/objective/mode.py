"""The training loss of the function that is deployed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

from torch import nn

from ..compat.checkpointing import checkpoints_give_input_gradients
from .loss_state import Memory

# Beside detectors and heads: where mmdet asks for ``self.training`` for anything else
# than dropout. In an older or newer mmdet some may be missing.
_ALSO_READ_IT = (
    ('mmdet.models.backbones.trident_resnet', 'TridentBottleneck'),
    ('mmdet.models.backbones.trident_resnet', 'TridentConv'),
    ('mmdet.models.layers.transformer.ddq_detr_layers', 'DDQTransformerDecoder'),
    ('mmdet.models.roi_heads.mask_heads.grid_head', 'GridHead'),
)


def _reads_training_flag() -> tuple[type, ...]:
    """Classes whose own ``training`` flag decides how losses are computed."""
    try:
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.dense_heads.base_mask_head import BaseMaskHead
        from mmdet.models.dense_heads.detr_head import DETRHead
        from mmdet.models.detectors.base import BaseDetector
        from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
    except ImportError:  # a classifier without mmdet installed
        return ()
    heads = [BaseDetector, BaseDenseHead, BaseMaskHead, DETRHead, BaseRoIHead]
    for module, name in _ALSO_READ_IT:
        with suppress(ImportError, AttributeError):
            heads.append(getattr(import_module(module), name))
    return tuple(heads)


@contextmanager
def loss_mode(model: nn.Module) -> Iterator[None]:
    """Makes the model compute its training loss as the function that is deployed.

    Everything is in eval mode (BatchNorm statistics stay, no dropout, also none inside
    ``nn.MultiheadAttention``), but the ``training`` flag of the detector and its heads
    is set, each by itself: FCOS with norm_on_bbox, VFNet, RepPoints, Deformable DETR
    and DINO give wrong losses or none without it. Weights are frozen, so a backward
    pass reaches the image only, also where the model checkpoints its activations. All
    flags are restored on exit, and so is what losses remember between calls (the counts
    of Seesaw loss, the history of Dynamic R-CNN).

    Args:
        model: the bare detector, not a distributed wrapper.
    """
    training = [(module, module.training) for module in model.modules()]
    frozen = [(weight, weight.requires_grad) for weight in model.parameters()]
    heads = _reads_training_flag()
    memory = Memory(model)
    try:
        model.eval()
        for module, _ in training:
            if isinstance(module, heads):
                module.training = True
        for weight, _ in frozen:
            weight.requires_grad_(False)
        with checkpoints_give_input_gradients():
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for weight, flag in frozen:
            weight.requires_grad_(flag)
        memory.restore(thorough=True)
