"""Measures what a prediction costs: boxes that reach suppression, and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import torch
from mmengine.dist import collect_results, get_world_size

from ..attacks import Attack
from ..objective import classes_at_once, counting, suppressing, threshold_of
from .attacker import Attacker
from .preparation import single_attacks

# Of each image; the prediction that is scored has warmed everything up.
_TIMES = 3


def is_wanted(attacks: Iterable[Attack]) -> bool:
    """Returns whether an attack is about the load."""
    return any(each.objective.reads == 'count' for each in single_attacks(attacks))


def load_of(attacker: Attacker, part: dict) -> dict[str, Any]:
    """Measures the load of predicting on the one image of a part.

    Returns:
        ``candidates``: how many predictions reach suppression; ``bound``: how many
        would if every score were above the threshold, which is what the number of
        points or anchors, ``nms_pre`` and the number of proposals let through;
        ``detections``, and how many ``max_per_img`` keeps; and ``seconds`` of a
        prediction (median of 3), pre- and postprocessing included.
    """
    seconds = []
    for _ in range(_TIMES):
        started = _now(attacker)
        (output,) = attacker.predict(part)
        seconds.append(_now(attacker) - started)
    counts = []
    for all_of_them in (False, True):
        with counting(attacker.model, all_of_them):
            counts.append(len(attacker.predict(part)[0].pred_instances))
    limit = suppressing(attacker.model)[0].test_cfg.get('max_per_img', -1)
    return {
        'candidates': counts[0],
        'bound': _attainable(attacker.model, counts[1]),
        'detections': len(output.pred_instances),
        'max_per_img': limit if limit > 0 else None,
        'seconds': median(seconds),
    }


def _now(attacker: Attacker) -> float:
    if attacker.device.type == 'cuda':
        torch.cuda.synchronize(attacker.device)
    return time.perf_counter()


def _attainable(model: Any, most: int) -> int:
    """Leaves out classes that a softmax of regions cannot raise at once."""
    head: Any = getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
    head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
    loss = getattr(head, 'loss_cls', None)
    if loss is None or getattr(loss, 'use_sigmoid', False):
        return most
    classes = head.num_classes
    return most // classes * classes_at_once(threshold_of(model), classes)


def summary(loads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Sums up the loads of all images, of all processes.

    Args:
        loads: of the images of this process, by name.

    Returns:
        Means of the counts and the median of the seconds over the images, whose number
        stands beside; None without any, and on other processes than the main one.
    """
    gathered = collect_results([dict(loads)], get_world_size(), device='cpu') or []
    rows = list({k: v for each in gathered for k, v in each.items()}.values())
    if not rows:
        return None
    counts = ('candidates', 'bound', 'detections')
    return {
        **{key: sum(row[key] for row in rows) / len(rows) for key in counts},
        'max_per_img': rows[0]['max_per_img'],
        'seconds': median(row['seconds'] for row in rows),
        'images': len(rows),
    }
