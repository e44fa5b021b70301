"""The attack evaluation of a converted config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict


def set_evaluation(cfg: Config, norm: str, eps: float) -> None:
    """Puts the attack loop in place of a plain test loop, where there is a test set.

    Noise and the total loss always; ``cls``, ``reg`` and ``cwa`` where the heads call
    their losses as these objectives expect it. Ten steps of a quarter of the radius,
    as the evaluation of arXiv 2305.17438 on COCO.
    """
    if cfg.get('test_dataloader') is None or cfg.get('test_cfg') is None:
        return
    pgd = {
        'type': 'mmrobust.PGD',
        'norm': norm,
        'eps': eps,
        'step_size': eps / 4,
        'num_steps': 10,
    }
    attacks: dict[str, Any] = {
        'noise': {'type': 'mmrobust.RandomNoise', 'norm': norm, 'eps': eps},
        'pgd': dict(pgd),
    }
    heads = list(box_heads(cfg.model))
    if heads and all('loss_cls' in head and 'loss_bbox' in head for head in heads):
        for name in ('cls', 'reg', 'cwa'):
            attacks[name] = {**pgd, 'objective': name, 'random_start': False}
    loop = {key: cfg.test_cfg[key] for key in ('fp16',) if key in cfg.test_cfg}
    for dataset in innermost(cfg.test_dataloader['dataset']):
        pipeline = dataset.get('pipeline') or []
        if pipeline and not any(map(loads_annotations, pipeline)):
            # A test without metrics needs no boxes; an attack does.
            load = ConfigDict(type='LoadAnnotations', with_bbox=True)
            pipeline.insert(len(pipeline) - 1, load)
    cfg.test_cfg = ConfigDict(type='mmrobust.AttackTestLoop', attacks=attacks, **loop)
    cfg.setdefault('default_hooks', ConfigDict())['attack_visualization'] = ConfigDict(
        type='mmrobust.AttackVisualizationHook'
    )


def innermost(dataset: dict) -> list[dict]:
    """The datasets inside wrappers like RepeatDataset and ConcatDataset."""
    if 'datasets' in dataset:
        return [one for inner in dataset['datasets'] for one in innermost(inner)]
    if isinstance(dataset.get('dataset'), dict):
        return innermost(dataset['dataset'])
    return [dataset]


def loads_annotations(transform: dict) -> bool:
    """Whether a transform of a pipeline is LoadAnnotations or one of its kind."""
    name = str(transform.get('type', '')).split('.')[-1]
    return name.startswith('Load') and 'Annotations' in name


def box_heads(model: dict) -> Iterator[dict]:
    """Configs of the heads that classify and locate objects; not the RPN's."""
    for node in (model, model.get('roi_head') or {}):
        head = node.get('bbox_head')
        for one in head if isinstance(head, list) else [head]:
            if isinstance(one, dict):
                yield one
