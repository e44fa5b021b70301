"""Changes an image's ground truth, for objectives that aim at something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def without_objects(sample: Any) -> Any:
    """Returns the sample as if nothing were in the image; the given one stays.

    Regions to ignore (crowds) stay: what is detected there is not judged either.
    """
    empty = sample.new()
    empty.gt_instances = sample.gt_instances[:0]
    return empty


def relabelled(sample: Any, targets: Tensor) -> Any:
    """Returns the sample with other labels in the same boxes; the given one stays.

    Args:
        sample: a sample with ``gt_instances.labels`` (M,).
        targets: the new label of every class, (num_classes,).
    """
    changed, instances = sample.new(), sample.gt_instances.new()
    instances.labels = targets.to(instances.labels)[instances.labels]
    changed.gt_instances = instances
    return changed


def next_classes(count: int) -> Tensor:
    """Every class becomes the next one, the last one the first."""
    return (torch.arange(count) + 1) % count


def likely_classes(scores: Tensor, least: bool) -> Tensor:
    """Every class becomes the other one that its objects are most or least taken for.

    Args:
        scores: summed class probabilities (num_classes, num_classes) of predictions,
            a row per true class.
        least: the least likely instead of the most likely.

    Returns:
        Classes (num_classes,). A class without predictions becomes the next one. Of
        equal scores the first counts.
    """
    scores = scores.detach().cpu().float()
    own = torch.eye(len(scores), dtype=torch.bool)
    others = scores.masked_fill(own, torch.inf if least else -torch.inf)
    found = others.argmin(1) if least else others.argmax(1)
    return torch.where(scores.sum(1) > 0, found, next_classes(len(scores)))
