"""Which figure a study compares, known before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ...blame import short
from ...errors import ConfigError

# Batches that the trial evaluates, with a head that has not learnt anything.
_BATCHES = 2


# Settings of metrics that name their figures.
_LISTS = {
    'metric': (str, list, tuple),
    'items': (str, list, tuple),
    'topk': (int, list, tuple),
}


def as_list(evaluator: Any) -> list[Mapping[str, Any]]:
    """The metrics of an evaluator's config.

    Raises:
        ConfigError: for what is no config of metrics.
    """
    if isinstance(evaluator, Mapping):
        evaluator = evaluator.get('metrics', evaluator)
    found = [evaluator] if isinstance(evaluator, Mapping) else evaluator or ()
    for metric in found if isinstance(found, (list, tuple)) else (found,):
        if not isinstance(metric, Mapping) or 'type' not in metric:
            raise ConfigError(
                f'the evaluator of the config has {short(repr(metric))}, which is no '
                'metric: give a dict with a type, or a list of such.'
            )
        for key, kinds in _LISTS.items():
            if metric.get(key) is not None and not isinstance(metric[key], kinds):
                raise ConfigError(
                    f'{key}={short(repr(metric[key]))} of {metric["type"]} must be a '
                    'list.'
                )
    return list(found)


def usual_keys(evaluator: Any) -> list[str]:
    """Keys of the metrics that are known here, the most usual one first."""
    keys: list[str] = []
    for metric in as_list(evaluator):
        kind = str(getattr(metric['type'], '__name__', metric['type'])).split('.')[-1]
        prefix = metric.get('prefix')
        if kind == 'Accuracy':
            topk = metric.get('topk') or (1,)
            topk = (topk,) if isinstance(topk, int) else topk
            keys += [f'{prefix or "accuracy"}/top{k}' for k in topk]
        elif kind == 'SingleLabelMetric':
            items = metric.get('items') or ('precision', 'recall', 'f1-score')
            keys += [f'{prefix or "single-label"}/{item}' for item in items]
        elif kind == 'CocoMetric':
            names = metric.get('metric') or 'bbox'
            names = [names] if isinstance(names, str) else names
            ends = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
            names = [name for name in names if name in ('bbox', 'segm')]
            keys += [f'{prefix or "coco"}/{n}_{end}' for n in names for end in ends]
        elif kind == 'VOCMetric':
            keys += [f'{prefix or "pascal_voc"}/{end}' for end in ('mAP', 'AP50')]
        elif kind == 'CocoPanopticMetric':
            keys += [f'{prefix or "coco_panoptic"}/{n}' for n in ('PQ', 'SQ', 'RQ')]
    return keys


def trial_keys(evaluator: Any, loader: Any, model: nn.Module) -> list[str]:
    """Keys that an evaluation of a few batches gives.

    It also finds images that cannot be read and labels that do not fit before hours of
    training.

    Args:
        evaluator: its config.
        loader: config of the data loader.
        model: the bare model on its device.

    Returns:
        The keys; none where a metric cannot do with a few images, or a model that has
        not learnt anything finds no object.
    """
    built: Any = Runner.build_dataloader(loader, seed=0)
    metrics = Evaluator([dict(metric) for metric in as_list(evaluator)])
    metainfo = getattr(built.dataset, 'metainfo', None)
    if metainfo is not None:
        metrics.dataset_meta = metainfo
    training = model.training
    model.eval()
    size = 0
    for index, batch in enumerate(built):
        if index == _BATCHES:
            break
        outputs = model.test_step(batch)  # type: ignore[operator]
        metrics.process(data_samples=outputs, data_batch=batch)
        size += len(outputs)
    model.train(training)
    try:
        return list(metrics.evaluate(size))
    except Exception as error:  # any metric of anybody
        print_log(f'Trial evaluation: {error}', logger='current')
        return []


def choose_metric(
    metric: str | None, keys: Iterable[str], cfg: Config
) -> tuple[str, list[str]]:
    """The key to compare.

    Args:
        metric: what the user wants, or None.
        keys: keys that the evaluation gives without attack, the preferred one first.
        cfg: the target task; attacks of its ``test_cfg`` give ``ATTACK/KEY``, too.

    Returns:
        The key, and notes for the report.

    Raises:
        ConfigError: for an unknown key, or None where no key is known.
    """
    known = list(dict.fromkeys(keys))
    if metric is None:
        if not known:
            raise ConfigError(
                "the evaluator's metrics are not known here: say with --metric which "
                'of their keys is compared.'
            )
        return known[0], []
    if not known:
        return metric, [
            f'Whether the evaluator gives {metric} could not be checked beforehand.'
        ]
    attacks = (cfg.get('test_cfg') or {}).get('attacks') or {}
    allowed = known + [f'{name}/{key}' for name in attacks for key in known]
    if metric not in allowed:
        raise ConfigError(
            f'--metric {metric!r} is not among what the test evaluator gives: choose '
            f'from {", ".join(allowed[:12])}{", ..." if len(allowed) > 12 else ""}.'
        )
    return metric, []


def without_attack(metric: str, cfg: Config) -> str:
    """The same figure without attack, as a plain validation gives it."""
    attacks = (cfg.get('test_cfg') or {}).get('attacks') or {}
    name, _, rest = metric.partition('/')
    return rest if name in attacks else metric
