"""AutoAttack on one batch (a shard) of images, and our own check of its answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.files import write_atomically
from ..utils.store import Store, read_json
from . import package
from .members import Ball


class Logits(nn.Module):
    """Runs a classifier's own preprocessing and network on images in [0, 1].

    Args:
        model: the bare classifier; its data preprocessor takes pixel units of 0-255.

    Attributes:
        forwards: images that went forwards so far.
        backwards: images whose logits were differentiated so far.
        detached: whether the logits ever failed to depend on the images.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Counts anew."""
        self.forwards = self.backwards = 0
        self.detached = False

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits (N, K) of images (N, C, H, W), in the loader's channels.

        Raises:
            ConfigError: if the model gives anything else.
        """
        data = self.model.data_preprocessor({'inputs': images * 255}, False)
        logits = self.model(data['inputs'], mode='tensor')
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else ()
        if len(shape) != 2 or shape[0] != len(images):
            found = shape if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(
                f'{type(self.model).__name__} gives {found} for {len(images)} images '
                'and not their logits (N, classes), so AutoAttack cannot work: use a '
                'classifier with one label per image.'
            )
        self.forwards += len(images)
        logits = logits.float()
        if images.requires_grad and torch.is_grad_enabled():
            if not logits.requires_grad:
                # autograd would end the run; a gradient of zero is what it means.
                self.detached = True
                logits = logits + 0 * images.flatten(1).sum(dim=1, keepdim=True)
            logits.register_hook(self._count_backward)
        # Square writes into what it gets, which may be the model's own tensor.
        return logits.clone()

    def _count_backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def count_zero_gradients(logits: Logits, images: Tensor, labels: Tensor) -> int:
    """Counts images at which the margin of the label has no gradient at all.

    The margin and not the cross entropy, whose gradient also vanishes where a healthy
    model is certain.
    """
    point = images.clone().requires_grad_()
    with torch.enable_grad():
        scores = logits(point)
        own = scores.gather(1, labels[:, None])
        others = scores.scatter(1, labels[:, None], -torch.inf)
        margin = own.squeeze(1) - others.amax(dim=1)
        (grad,) = torch.autograd.grad(margin.sum(), point)
    return int((grad.flatten(1) == 0).all(dim=1).sum())


def attack_shard(
    logits: Logits,
    build: Callable[[], tuple[Any, list[str]]],
    ball: Ball,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[str],
) -> tuple[dict[str, Any], Tensor]:
    """Attacks one batch.

    Args:
        logits: images in [0, 1] to logits; counts its passes.
        build: makes the package's attack, anew for every batch.
        ball: the threat.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        ids: names of the images.

    Returns:
        The content of the shard's file, and the adversarial images (N, C, H, W). An
        image is robust if its clean prediction is right and what the package found is
        no misclassified image inside the ball, by a forward pass of our own.

    Raises:
        ConfigError: if the batch does not fit on the GPU.
    """
    logits.reset()
    started = time.monotonic()
    with torch.no_grad():
        clean = logits(images).argmax(dim=1)
    correct = clean == labels
    no_gradient = 0
    outcome = package.Outcome(images, clean, ['clean'] * len(images))
    if correct.any():
        no_gradient = count_zero_gradients(logits, images[correct], labels[correct])
        attack, _ = build()
        try:
            outcome = package.run(attack, images, labels)
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f'{len(images)} images at once do not fit on the GPU: give a '
                'smaller --batch-size (shard_size).'
            ) from error
    adversarial = outcome.images
    with torch.no_grad():
        found = logits(adversarial).argmax(dim=1)
    valid = ball.contains(images, adversarial)
    columns = {
        'id': ids,
        'label': labels.tolist(),
        'clean': clean.tolist(),
        'clean_correct': correct.tolist(),
        'adversarial': found.tolist(),
        'robust': (correct & ~(valid & (found != labels))).tolist(),
        'broken_by': outcome.broken_by,
        'distance': (ball.distances(images, adversarial) * 255).tolist(),
        'valid': valid.tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    record = {
        'images': [dict(zip(columns, row, strict=True)) for row in rows],
        'members': {name: vars(result) for name, result in outcome.members.items()},
        'flags': outcome.flags,
        'no_gradient': no_gradient,
        'detached': logits.detached,
        'invalid': int((~valid).sum()),
        'disagreements': int((correct & (found != outcome.predictions)).sum()),
        'forwards': logits.forwards,
        'backwards': logits.backwards,
        'seconds': round(time.monotonic() - started, 3),
    }
    return record, adversarial


class ShardStore(Store):
    """A run's shards as JSON, for people too; each threat and resolution has its own.

    A later run may therefore add some.
    """

    def path(self, resolution: str, threat: str, shard: int) -> Path:
        """Returns where the results of a shard are."""
        assert self.folder is not None
        return self.folder / resolution / threat / f'{shard:06d}.json'

    def read(
        self, resolution: str, threat: str, shard: int, ids: Sequence[str]
    ) -> dict[str, Any] | None:
        """Reads a shard's results, which must be of the images of these ids.

        Returns:
            None if there are none, or none that is whole and of this run.
        """
        record = read_json(self.path(resolution, threat, shard))
        if not isinstance(record, dict) or record.get('run') != self.digest:
            return None
        return record if [i['id'] for i in record['images']] == list(ids) else None

    def write(
        self, resolution: str, threat: str, shard: int, record: dict[str, Any]
    ) -> None:
        """Writes a shard's results, whole or not at all."""
        path = self.path(resolution, threat, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({'run': self.digest, **record}, indent=1))
