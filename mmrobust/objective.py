"""What an adversary maximises: the detector's own training loss, or parts of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .batch import with_images
from .class_weights import weighted_classification_loss
from .errors import ConfigError
from .memory import Memory

# The head's classification and box terms, as the attacks A_cls, A_reg and A_cwa of
# arXiv 2305.17438 use them (its code: head losses only, no RPN, centerness or
# auxiliary-layer terms).
CLS, REG = 'loss_cls', 'loss_bbox'
NAMED = {
    'total': None,
    'cls': (CLS,),
    'reg': (REG,),
    'cls+reg': (CLS, REG),
    'cwa': (CLS, REG),
}

# Denoising queries are built from the ground truth and from random noise: a loss on
# them leaks the labels and differs between two calls.
_DENOISING = 'dn_'


class Objective:
    """A scalar to maximise, selected from a detector's loss dict.

    Args:
        terms: ``'total'`` (every loss), ``'cls'``, ``'reg'``, ``'cls+reg'``, ``'cwa'``
            (class-weighted classification plus box regression), or the names of loss
            terms. A name matches exactly; if none does, it matches behind a stage
            prefix, so that ``loss_cls`` finds the ``s0.loss_cls`` of a cascade and the
            ``stage0_loss_cls`` of Sparse R-CNN.
        class_weights: weights (num_classes,) for ``'cwa'``.

    Raises:
        ConfigError: for an unknown name.
    """

    def __init__(
        self,
        terms: str | Sequence[str] = 'total',
        class_weights: Tensor | None = None,
    ) -> None:
        if isinstance(terms, str) and terms not in NAMED:
            raise ConfigError(
                f'objective={terms!r} is unknown: choose one of {", ".join(NAMED)}, or '
                "a list of loss names such as ['loss_cls', 'loss_bbox']."
            )
        if not isinstance(terms, str) and not terms:
            raise ConfigError("objective=[] is empty: name loss terms, or use 'total'.")
        self.name = terms if isinstance(terms, str) else '+'.join(terms)
        self.terms = NAMED[terms] if isinstance(terms, str) else tuple(terms)
        self.needs_class_weights = terms == 'cwa'
        self.class_weights = class_weights

    def __call__(self, losses: dict[str, Any]) -> Tensor:
        """Sums the selected losses as the detector's ``parse_losses`` would.

        Args:
            losses: name to scalar, tensor or list of tensors, from
                ``model(..., mode='loss')``.

        Returns:
            A scalar.

        Raises:
            ConfigError: if a named term does not exist.
        """
        values: list[Tensor] = []
        for key in self.select(losses):
            loss = losses[key]
            parts = loss if isinstance(loss, (list, tuple)) else [loss]
            values.extend(part.mean() for part in parts)
        return torch.stack([value.float() for value in values]).sum()

    def select(self, losses: dict[str, Any]) -> list[str]:
        """Names of the losses that belong to the objective."""
        known = [
            key
            for key in losses
            if 'loss' in key and not key.split('.')[-1].startswith(_DENOISING)
        ]
        if self.terms is None:
            return known
        selected: list[str] = []
        for term in self.terms:
            matches = [key for key in known if key == term]
            stage = re.compile(rf's(tage)?\d+[._]{re.escape(term)}')
            matches = matches or [key for key in known if stage.fullmatch(key)]
            if not matches:
                raise ConfigError(
                    f'the model has no loss named {term!r} for the objective '
                    f'{self.name!r}: it has {", ".join(known)}; use the objective '
                    "'total' or a list of these names."
                )
            selected.extend(matches)
        return selected

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Weights the classification losses of ``model`` by class, where asked for."""
        if not self.needs_class_weights:
            yield
            return
        if self.class_weights is None:
            raise ConfigError("the objective 'cwa' needs class weights.")
        with weighted_classification_loss(model, self.class_weights):
            yield


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
    pass reaches the image only. All flags are restored on exit, and so is what losses
    remember between calls (the counts of Seesaw loss, the history of Dynamic R-CNN).

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
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for weight, flag in frozen:
            weight.requires_grad_(flag)
        memory.restore()


class LossOracle:
    """Answers an attack's questions about one batch, and counts them.

    Use inside :func:`loss_mode`.

    Args:
        model: the bare detector.
        data_batch: the batch whose images are attacked.
        samples: ground truth in the input frame, from :func:`batch.attack_samples`.
        objective: what to maximise.
        per_image: each image goes through the network alone, so that its loss (and
            its adversarial example) does not depend on its neighbours in the batch.
            Otherwise the batch goes through at once and all images share one value,
            as in adversarial training.

    Attributes:
        forwards: images that went through the network forwards.
        backwards: images that went through the network backwards.
    """

    def __init__(
        self,
        model: Any,
        data_batch: dict,
        samples: Sequence[Any],
        objective: Objective,
        per_image: bool = True,
    ) -> None:
        self.model = model
        self.data_batch = data_batch
        self.samples = list(samples)
        self.objective = objective
        self.per_image = per_image
        self.forwards = 0
        self.backwards = 0
        self._memory = Memory(model)

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """The objective without gradients: images (C, H, W) to values (N,)."""
        with torch.no_grad(), self.objective.attached(self.model):
            return torch.stack(
                [self._loss(part, images) for part in self._parts(images)]
            )

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The objective and its gradient with respect to every image.

        Args:
            images: one tensor (C, H, W) in pixel units per image of the batch.

        Returns:
            Values (N,), or (1,) without ``per_image``, and one gradient (C, H, W) per
            image. Gradients are zero where the objective does not depend on the image
            (for instance box losses of an image without objects), and where they are
            not finite.
        """
        values: list[Tensor] = []
        grads: list[Tensor] = []
        with torch.enable_grad(), self.objective.attached(self.model):
            leaves = [image.detach().requires_grad_() for image in images]
            for part in self._parts(images):
                loss = self._loss(part, leaves)
                values.append(loss.detach())
                inputs = [leaves[i] for i in part]
                grads.extend(gradients(loss, inputs))
                self.backwards += len(part)
        return torch.stack(values), grads

    def _parts(self, images: Sequence[Tensor]) -> list[list[int]]:
        indices = list(range(len(images)))
        return [[i] for i in indices] if self.per_image else [indices]

    def _loss(self, part: list[int], images: Sequence[Tensor]) -> Tensor:
        # A loss must not depend on how often it was asked for.
        self._memory.restore()
        batch = with_images(self.data_batch, [images[i] for i in part])
        batch['data_samples'] = [self.samples[i] for i in part]
        preprocessor = self.model.data_preprocessor
        # Not as in training: that would augment the batch. What else training=True
        # does, padding masks and segmentation to the batch's shape, the losses need;
        # and BoxInst makes its masks there.
        data = preprocessor(batch, hasattr(preprocessor, 'get_images_color_similarity'))
        if getattr(preprocessor, 'pad_mask', False):
            preprocessor.pad_gt_masks(data['data_samples'])
        if getattr(preprocessor, 'pad_seg', False):
            preprocessor.pad_gt_sem_seg(data['data_samples'])
        losses = self.model(**data, mode='loss')
        self.forwards += len(part)
        return self.objective(losses)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a scalar; zero where there is none, or one that is not finite."""
    if not loss.requires_grad:
        return [torch.zeros_like(image) for image in inputs]
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [
        torch.zeros_like(image)
        if grad is None
        else torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        for image, grad in zip(inputs, grads, strict=True)
    ]
