"""PBCAT: FreeAT with a weak perturbation everywhere and strong patches on objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank
from torch import Tensor

from ..attacks import PGD
from ..batch import with_samples
from ..distributed import whole
from ..errors import ConfigError
from ..objective import is_classifier, loss_mode, make_oracle
from ..region import regions_in
from ..registry import ADVERSARIES
from ..threat import ThreatModel
from ..utils.models import bare_model
from ..utils.seeding import derive_seed
from ..utils.validation import to_pixels
from .free import FreeAdversary, advanced, fitted

# Cells along each side of a patch, and how many of them are active.
_CELLS, _ACTIVE = 8, 32
# Settings that a checkpoint's meta keeps.
_TOLD = (
    *('patch_eps', 'patch_step_size', 'patch_share', 'patch_size', 'patch_jitter'),
    'choose',
)


@ADVERSARIES.register_module()
class PBCATAdversary(FreeAdversary):
    """PBCAT: as FreeAT, but objects also wear patches of a far larger radius.

    Li et al., "PBCAT: Patch-based composite adversarial training against physically
    realizable attacks on object detection", ICCV 2025, arXiv 2506.23581; the details
    are those of its code. On each object, with a probability, lies a square; it is
    divided into 8 x 8 cells, of which those 32 are active where the loss of the clean
    image has the largest gradients (mean of the length over channels). Active cells
    show a perturbation of radius ``patch_eps``, all other pixels that of FreeAT. Both
    are as large as the image, are carried from replay to replay and from batch to
    batch, and follow the gradient of the update everywhere, so that a patch that moves
    finds a perturbation where it comes to lie. A pixel belongs to one of the two.

    An update costs one forward and backward pass more than FreeAT's, for the cells;
    with ``choose='batch'`` the first replay of each batch alone does. Without patches
    (``patch_share=0``) it is FreeAT, bit for bit.

    Args:
        norm, eps: of the perturbation outside of patches, as :class:`FreeAdversary`'s;
            eps 0 leaves patches alone.
        step_size: its step, by default eps.
        replays: updates per batch.
        patch_eps: radius of a patch (linf) in pixel units of 0-255.
        patch_step_size: its step, by default an eighth of ``patch_eps``.
        patch_share: probability in [0, 1] that an object wears a patch.
        patch_size: side of a patch as a share of the diagonal of its object's box;
            rounded down to whole pixels for 8 cells. A smaller one is active
            altogether, and there is none below 2 pixels.
        patch_jitter: standard deviation of a patch's place around the centre of its
            box, as a share of the box's width and height. It stays inside the image.
        choose: ``'update'`` draws places and chooses cells for every update,
            ``'batch'`` once for all replays of a batch.
        **free: ``objective`` and ``carry`` of :class:`FreeAdversary` (the code of
            PBCAT has ``'cls+reg'`` and ``'run'``), and what all methods have. A
            ``warmup_iters`` warms up both radii.

    Raises:
        ConfigError: for a setting that is unknown or out of range.
    """

    def __init__(
        self,
        norm: str = 'linf',
        eps: float | str = 4,
        step_size: float | str | None = None,
        replays: int = 8,
        patch_eps: float | str = 64,
        patch_step_size: float | str | None = None,
        patch_share: float = 0.5,
        patch_size: float = 0.1414,
        patch_jitter: float = 0.1414,
        choose: str = 'update',
        **free: Any,
    ) -> None:
        super().__init__(norm, eps, step_size, replays, **free)
        radius = to_pixels(patch_eps, 'patch_eps')
        step = PGD('linf', radius, patch_step_size, num_steps=20)
        self.patch_eps = step.threat.eps
        self.patch_step_size = step.step_size  # an eighth of the radius by default
        for name, value, most in (
            ('patch_share', patch_share, 1),
            ('patch_size', patch_size, 1),
            ('patch_jitter', patch_jitter, 1),
        ):
            if not 0 <= value <= most:
                raise ConfigError(f'{name}={value!r} must be from 0 to {most}.')
        if choose not in ('update', 'batch'):
            raise ConfigError(
                f"choose={choose!r} is unknown: choose 'update' or 'batch'."
            )
        self.patch_share, self.patch_size = patch_share, patch_size
        self.patch_jitter, self.choose = patch_jitter, choose
        self._patches: list[Tensor] = []  # of each slot of a batch, (C, H, W)
        self._masks: list[Tensor] = []  # which pixels show them, bool (1, H, W)
        self._threats: list[ThreatModel] = []  # of the patches of this update

    @property
    def perturbs(self) -> bool:
        """See :attr:`FreeAdversary.perturbs`."""
        return super().perturbs or min(self.patch_share, self.patch_eps) > 0

    def _forget(self) -> None:
        super()._forget()
        self._patches = []

    def _changes(
        self,
        model: Any,
        data_batch: dict,
        images: Sequence[Tensor],
        deltas: list[Tensor],
        iteration: int,
    ) -> list[Tensor]:
        if not self.patch_share:
            return deltas
        threat = ThreatModel('linf', self.patch_eps * self.warmth(iteration))
        self._threats = [
            threat.within(region, image)
            for region, image in zip(regions_in(data_batch), images, strict=True)
        ]
        patches = fitted(self._patches, images, self._threats)
        self._patches[: len(images)] = patches
        chosen = len(self._masks) == len(images) and iteration % self.replays
        if self.choose == 'update' or not chosen:
            bare = bare_model(model)
            with whole(model):
                self._masks = self._choose(bare, data_batch, images, iteration)
        masks = [mask.to(images[0].device) for mask in self._masks]
        rows = zip(masks, patches, deltas, strict=True)
        return [torch.where(*row) for row in rows]

    def _choose(
        self, model: Any, data_batch: dict, images: Sequence[Tensor], iteration: int
    ) -> list[Tensor]:
        """Draws the patches of a batch and returns their active cells."""
        if is_classifier(model):
            raise ConfigError(
                'PBCATAdversary puts patches on objects: take FreeAdversary for a '
                'classifier.'
            )
        batch = with_samples(data_batch)
        samples = [each.to(images[0].device) for each in batch['data_samples']]
        batch = {**batch, 'data_samples': samples}
        with loss_mode(model):
            oracle = make_oracle(model, batch, samples, self.objective, per_image=False)
            _, grads = oracle.value_and_grad(images)
        seed = derive_seed('patches', torch.initial_seed(), get_rank(), iteration)
        generator = torch.Generator().manual_seed(seed)
        masks = []
        for sample, grad in zip(samples, grads, strict=True):
            boxes = sample.gt_instances.bboxes
            boxes = boxes.tensor if hasattr(boxes, 'tensor') else boxes
            drawn = draw_squares(
                boxes.cpu(),
                (grad.shape[1], grad.shape[2]),
                self.patch_share,
                self.patch_size,
                self.patch_jitter,
                generator,
            )
            masks.append(active_cells(grad, drawn))
        return masks

    def _follow(self, slot: int, grad: Tensor | None, iteration: int) -> None:
        if self.patch_share:
            step_size = self.patch_step_size * self.warmth(iteration)
            patch, threat = self._patches[slot], self._threats[slot]
            self._patches[slot] = advanced(threat, patch, grad, step_size)

    def state_dict(self, iteration: int) -> dict[str, Any]:
        """See :meth:`Adversary.state_dict`."""
        state = super().state_dict(iteration)
        if state and self.patch_share:
            state['patches'] = [patch.cpu() for patch in self._patches]
            if self.choose == 'batch' and iteration % self.replays:
                state['masks'] = [mask.cpu() for mask in self._masks]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Adversary.load_state_dict`."""
        super().load_state_dict(state)
        self._patches = list(state.get('patches', ()))
        self._masks = list(state.get('masks', ()))

    def describe(self) -> dict[str, Any]:
        """See :meth:`Adversary.describe`."""
        return {**super().describe(), **{name: getattr(self, name) for name in _TOLD}}


class Square(NamedTuple):
    """A square of pixels: its first column and row, and its side."""

    x: int
    y: int
    side: int


def draw_squares(
    boxes: Tensor,
    shape: tuple[int, int],
    share: float,
    size: float,
    jitter: float,
    generator: torch.Generator,
) -> list[Square]:
    """Draws patches on some of an image's objects.

    Args:
        boxes: boxes (n, 4) of the objects, x1, y1, x2, y2 in pixels.
        shape: height and width of the image.
        share: probability that an object gets one.
        size: side as a share of the diagonal of the box.
        jitter: standard deviation of the centre, as a share of the box's sides.
        generator: CPU generator; draws three numbers for every box.
    """
    if len(boxes) and boxes.shape[1] != 4:
        raise ConfigError(
            f'boxes have {boxes.shape[1]} numbers, and patches lie on upright ones: '
            'take FreeAdversary.'
        )
    squares = []
    height, width = shape
    for x1, y1, x2, y2 in boxes.tolist():
        worn = float(torch.rand((), generator=generator)) < share
        moved_x, moved_y = (jitter * torch.randn(2, generator=generator)).tolist()
        half = int(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 * size / 2)
        half = min(half, width // 2, height // 2)
        # Whole pixels for each cell, where there is one for each.
        half = half // (_CELLS // 2) * (_CELLS // 2) if half >= _CELLS // 2 else half
        if not worn or half < 1:
            continue
        x = int((x1 + x2) / 2 + moved_x * (x2 - x1))
        y = int((y1 + y2) / 2 + moved_y * (y2 - y1))
        x, y = min(max(x, half), width - half), min(max(y, half), height - half)
        squares.append(Square(x - half, y - half, 2 * half))
    return squares


def active_cells(grad: Tensor, squares: Sequence[Square]) -> Tensor:
    """Returns which pixels show a patch, bool (1, H, W): half of each square's cells.

    Args:
        grad: gradient (C, H, W) of the loss with respect to the clean image.
        squares: the patches; those too small for cells are active altogether.
    """
    mask = torch.zeros_like(grad[:1], dtype=torch.bool)
    lengths = torch.linalg.vector_norm(grad, dim=0, keepdim=True)
    for x, y, side in squares:
        window = (slice(None), slice(y, y + side), slice(x, x + side))
        if side < _CELLS:
            mask[window] = True
            continue
        means = F.avg_pool2d(lengths[window], side // _CELLS).flatten()
        active = torch.zeros_like(means, dtype=torch.bool)
        active[means.topk(_ACTIVE).indices] = True
        active = active.view(_CELLS, _CELLS)
        for axis in (0, 1):
            active = active.repeat_interleave(side // _CELLS, axis)
        mask[window] |= active
    return mask
