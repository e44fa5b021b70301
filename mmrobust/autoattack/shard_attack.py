"""AutoAttack on one batch, and our own check of its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from . import package
from .classifier import Logits, count_zero_gradients
from .threats import Ball


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
        What the shard's file holds, and the adversarial images (N, C, H, W). An image
        is robust if its clean prediction is right and what the package found is no
        misclassified image inside the ball, by a forward pass of our own.

    Raises:
        ConfigError: if the batch does not fit on the GPU.
    """
    logits.forwards = logits.backwards = 0
    logits.detached = False
    started = time.monotonic()
    with torch.no_grad():
        clean = logits(images).argmax(dim=1)
    correct = clean == labels
    adversarial, said, no_gradient = images, clean, 0
    broken_by: list[str | None] = ['clean'] * len(images)
    results: dict[str, package.MemberResult] = {}
    flags: list[str] = []
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
        adversarial, said = outcome.images, outcome.predictions
        broken_by = outcome.broken_by
        results, flags = outcome.members, outcome.flags
    with torch.no_grad():
        found = logits(adversarial).argmax(dim=1)
    valid = ball.contains(images, adversarial)
    robust = correct & ~(valid & (found != labels))
    columns = {
        'id': ids,
        'label': labels.tolist(),
        'clean': clean.tolist(),
        'clean_correct': correct.tolist(),
        'adversarial': found.tolist(),
        'robust': robust.tolist(),
        'broken_by': broken_by,
        'distance': (ball.distances(images, adversarial) * 255).tolist(),
        'valid': valid.tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    record = {
        'images': [dict(zip(columns, row, strict=True)) for row in rows],
        'members': {name: vars(result) for name, result in results.items()},
        'flags': flags,
        'no_gradient': no_gradient,
        'detached': logits.detached,
        'invalid': int((~valid).sum()),
        'disagreements': int((correct & (found != said)).sum()),
        'forwards': logits.forwards,
        'backwards': logits.backwards,
        'seconds': round(time.monotonic() - started, 3),
    }
    return record, adversarial
