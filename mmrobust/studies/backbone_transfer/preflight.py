"""Everything about a study that can go wrong, found before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import initialize
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from ...errors import ConfigError
from ...utils.files import file_sha256
from ...utils.models import state_digest
from ...weights import check_normalization
from .metric import choose_metric, trial_keys, usual_keys, without_attack
from .plan import Sweep, number
from .runs import loaded_digest, with_backbone

_NEEDED = (
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'test_dataloader',
    'test_cfg',
    'test_evaluator',
)
# Heads that classify into the classes of the dataset (not a region proposal's).
_HEADS = re.compile(r'(^|\.)(head|bbox_head|mask_head)(\.\d+)?$')


@dataclass
class Findings:
    """What the checks have found out.

    Attributes:
        metric: key of the figure that is compared.
        selection: its key in the validation that chooses the learning rate, or None
            where the test or nothing chooses it.
        hashes: SHA-256 of the checkpoints' files by eps; None for a URL.
        backbones: digest of the initialised backbones by eps.
        notes: sentences for the report.
    """

    metric: str = ''
    selection: str | None = None
    hashes: dict[float, str | None] = field(default_factory=dict)
    backbones: dict[float, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_config(cfg: Config, name: str) -> None:
    """Makes sure that a config is a whole task of which only the backbone varies.

    Raises:
        ConfigError: if it is not.
    """
    for key in _NEEDED:
        if cfg.get(key) is None:
            raise ConfigError(f'config {name!r} has no {key} to train and test with.')
    if not isinstance(cfg.model.get('backbone'), Mapping):
        raise ConfigError(
            f'config {name!r} has no model.backbone that a checkpoint could be put '
            'into: use a classifier of mmpretrain or a detector of mmdet.'
        )
    if cfg.get('load_from') or cfg.get('resume'):
        raise ConfigError(
            f'config {name!r} has load_from or resume, which would replace the '
            'backbones that are compared: set load_from=None and resume=False.'
        )
    if 'lr' not in (cfg.optim_wrapper.get('optimizer') or {}):
        raise ConfigError(f'config {name!r} has no optim_wrapper.optimizer.lr.')
    lr = cfg.optim_wrapper.optimizer.lr
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < 1e9:
        raise ConfigError(
            f'optim_wrapper.optimizer.lr={lr!r} of config {name!r} must be a number '
            'above 0.'
        )


def check(sweep: Sweep) -> Findings:
    """Checks checkpoints, classes, data and metric; builds the model for each eps.

    Raises:
        ConfigError: for whatever would fail or mislead later.
    """
    cfg = sweep.cfg
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    found = Findings()
    model: nn.Module | None = None
    for eps, path in sweep.checkpoints.items():
        model = _initialised(cfg, eps, path)
        found.backbones[eps] = loaded_digest(with_backbone(cfg, path), model)
        found.hashes[eps] = file_sha256(path)
        for other, digest in found.backbones.items():
            if other != eps and digest == found.backbones[eps]:
                raise ConfigError(
                    f'the checkpoints of eps {number(other)} '
                    f'({sweep.checkpoints[other]!r}) and eps {number(eps)} ({path!r}) '
                    'hold the same weights: check the paths.'
                )
    assert model is not None
    datasets = {
        key: DATASETS.build(cfg[key].dataset)
        for key in ('train_dataloader', 'test_dataloader')
    }
    for key, dataset in datasets.items():
        check_classes(model, dataset, key)
    model = model.to(get_device())
    keys = _keys(cfg, 'test', model)
    found.metric, notes = choose_metric(sweep.metric, keys, cfg)
    found.notes += notes
    found.selection, notes = _selection(sweep, found.metric, model)
    found.notes += notes
    found.notes += _own_freezing(sweep)
    return found


def _initialised(cfg: Config, eps: float, path: str) -> Any:
    task = with_backbone(cfg, path)
    try:
        model = MODELS.build(task.model)
        model.init_weights()
        check_normalization(model)
    except ConfigError as error:
        raise ConfigError(f'eps {number(eps)}: {error}') from error
    before = state_digest(model.backbone)
    initialize(model.backbone, dict(task.model.backbone.init_cfg))
    if state_digest(model.backbone) != before:
        raise ConfigError(
            f'{type(model.backbone).__name__} or the model changes weights of '
            f'{path!r} after they have been loaded: leave out other init_cfg of the '
            'model, and set zero_init_residual=False where the backbone has it.'
        )
    return model


def check_classes(model: nn.Module, dataset: Any, name: str) -> None:
    """Compares the heads' numbers of classes with the dataset's.

    Args:
        model: a classifier or detector.
        dataset: a dataset with ``metainfo`` or, without class names, labels.
        name: what it is called in the message.

    Raises:
        ConfigError: if they differ.
    """
    if len(dataset) == 0:
        raise ConfigError(
            f'the dataset of {name} is empty: check ann_file, data_prefix and '
            'filter_cfg.'
        )
    metainfo = getattr(dataset, 'metainfo', None) or {}
    if any('thing' in str(key).lower() for key in metainfo):
        return  # panoptic: heads share the classes
    classes = metainfo.get('classes')
    count = None if classes is None else len(classes)
    if count is None and hasattr(dataset, 'get_gt_labels'):
        highest = int(dataset.get_gt_labels().max()) + 1
    else:
        highest = 0
    for part, module in model.named_modules():
        own = getattr(module, 'num_classes', None)
        if not _HEADS.search(part) or not isinstance(own, int):
            continue
        if (count is not None and own != count) or own < highest:
            raise ConfigError(
                f'model.{part} has num_classes={own}, and the dataset of {name} has '
                f'{count or highest} classes: set model.{part}.num_classes.'
            )


def _keys(cfg: Config, split: str, model: nn.Module) -> list[str]:
    """Keys of an evaluation without attack, the usual ones first."""
    evaluator, loader = cfg[f'{split}_evaluator'], cfg[f'{split}_dataloader']
    given = trial_keys(evaluator, loader, model)
    # What a trial shows beats what is known of the metric's class.
    usual = [key for key in usual_keys(evaluator) if not given or key in given]
    return list(dict.fromkeys([*usual, *given]))


def _selection(
    sweep: Sweep, metric: str, model: nn.Module
) -> tuple[str | None, list[str]]:
    """By which figure of the validation a learning rate is chosen."""
    cfg = sweep.cfg
    if len(sweep.lrs) == 1:
        return None, []
    loader = cfg.get('val_dataloader')
    complete = loader and cfg.get('val_evaluator') and cfg.get('val_cfg') is not None
    if not complete or _source(loader.dataset) == _source(cfg.test_dataloader.dataset):
        return None, [
            'The learning rates were chosen on the test set, as the config has no '
            'validation set of its own: the figures favour every backbone a little.'
        ]
    attacked = (cfg.val_cfg or {}).get('attacks')
    key = metric if attacked else without_attack(metric, cfg)
    known = _keys(cfg, 'val', model)
    if known and without_attack(key, cfg) not in known:
        raise ConfigError(
            f'the validation, which chooses the learning rate, gives no {key!r} but '
            f'{", ".join(known)}: make val_evaluator the same as test_evaluator.'
        )
    return key, [f'Learning rates were chosen by {key} on the validation set.']


def _source(dataset: Mapping) -> dict:
    """Where a dataset's images come from, without how they are prepared."""
    ignored = ('pipeline', 'test_mode', '_scope_', 'lazy_init')
    return {key: value for key, value in dataset.items() if key not in ignored}


def _own_freezing(sweep: Sweep) -> list[str]:
    backbone = sweep.cfg.model.backbone
    frozen = backbone.get('frozen_stages', -1)
    if 'full' not in sweep.modes:
        return []
    settings = []
    if isinstance(frozen, int) and frozen >= 0:
        settings.append(f'frozen_stages={frozen}')
    if backbone.get('norm_eval'):
        settings.append('norm_eval=True')
    norm = backbone.get('norm_cfg') or {}
    if norm.get('requires_grad') is False:
        settings.append('norm_cfg.requires_grad=False')
    if not settings:
        return []
    return [
        f'In mode full the backbone keeps what the config itself freezes '
        f'({", ".join(settings)}), as is usual for detectors.'
    ]
