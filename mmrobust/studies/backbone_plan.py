"""The trainings of a backbone-transfer study, and checks before the first of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import initialize
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from ..checks import check_classes, check_has_boxes
from ..errors import ConfigError
from ..objective import check_labels
from ..utils.files import file_sha256
from ..utils.models import state_digest
from ..weights import check_normalization
from .study import choose_metric, trial_keys, usual_keys

# How the target task is learnt. `fixed`: the backbone stays as it is, all else learns.
# `full`: what the config lets learn, which for detectors usually is not the stem.
MODES = ('fixed', 'full')

_NEEDED = (
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'test_dataloader',
    'test_cfg',
    'test_evaluator',
)
# What of a dataset's config says nothing about where its images come from.
_PREPARATION = ('pipeline', 'test_mode', '_scope_', 'lazy_init')


@dataclass(frozen=True)
class Run:
    """One training of the target task.

    Attributes:
        eps: radius of the backbone's pre-training.
        mode: ``'fixed'`` or ``'full'``.
        lr: learning rate.
        seed: seed of everything random.
    """

    eps: float
    mode: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder below ``runs/``."""
        return f'eps{short(self.eps)}/{self.mode}/lr{short(self.lr)}/seed{self.seed}'


@dataclass(frozen=True)
class Sweep:
    """All trainings of one study.

    Attributes:
        cfg: the target task, with all overrides.
        checkpoints: file or URL of the backbone by the eps of its pre-training.
        modes: ``'fixed'``, ``'full'`` or both.
        lrs: learning rates to choose from.
        seeds: one training each.
        norm: norm of the pre-training's eps, for the report.
        metric: key of the figure, or None for the usual one of the evaluator.
        work_dir: folder of everything that is written.
    """

    cfg: Config
    checkpoints: dict[float, str]
    modes: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    norm: str
    metric: str | None
    work_dir: Path

    def runs(self) -> list[Run]:
        """Lists all runs; a whole curve of one seed comes first."""
        return [
            Run(eps, mode, lr, seed)
            for seed in self.seeds
            for eps in self.checkpoints
            for mode in self.modes
            for lr in self.lrs
        ]

    def folder(self, run: Run) -> Path:
        """Returns where a run's logs, checkpoints and result are."""
        return self.work_dir / 'runs' / run.name


@dataclass
class Findings:
    """Facts that the checks before a study have found out.

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


def short(value: float) -> str:
    """Writes a number as short as it can be without becoming another one."""
    text = f'{value:g}'
    return text if float(text) == value else repr(value)


# ------------------------------------------------------------------ the command's words


def parse_checkpoints(items: Sequence[str]) -> dict[float, str]:
    """Reads ``EPS=FILE`` pairs.

    Returns:
        Files by eps, in rising order.

    Raises:
        ConfigError: for a pair without ``=``, a bad eps, or an eps given twice.
    """
    found: dict[float, str] = {}
    for item in items:
        label, _, path = item.partition('=')
        try:
            eps = float(label)
        except ValueError:
            eps = math.nan
        if not (0 <= eps < math.inf and path):
            raise ConfigError(
                f'--checkpoints {item!r} must be EPS=FILE, for instance 4=a.pth, with '
                'an eps of at least 0 (0 for a standard backbone).'
            )
        if eps in found:
            raise ConfigError(
                f'--checkpoints has eps {short(eps)} twice ({found[eps]!r} and '
                f'{path!r}): give each eps one checkpoint.'
            )
        found[eps] = path
    return dict(sorted(found.items()))


# --------------------------------------------------------------------------- the checks


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
    lr = (cfg.optim_wrapper.get('optimizer') or {}).get('lr')
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
    model: Any = None
    for eps, path in sweep.checkpoints.items():
        model = _initialised(cfg, eps, path)
        digest = loaded_digest(with_backbone(cfg, path), model)
        for other, known in found.backbones.items():
            if digest == known:
                raise ConfigError(
                    f'the checkpoints of eps {short(other)} '
                    f'({sweep.checkpoints[other]!r}) and eps {short(eps)} ({path!r}) '
                    'hold the same weights: check the paths.'
                )
        found.backbones[eps], found.hashes[eps] = digest, file_sha256(path)
    for key in ('train_dataloader', 'test_dataloader'):
        dataset = DATASETS.build(cfg[key].dataset)
        try:
            check_has_boxes(dataset, 'study')
            check_classes(model, dataset)
            if count := getattr(getattr(model, 'head', None), 'num_classes', None):
                check_labels(dataset, count)
        except ConfigError as error:
            raise ConfigError(f'{key}: {error}') from error
    model = model.to(get_device())
    keys = _keys(cfg, 'test', model)
    found.metric, notes = choose_metric(sweep.metric, keys, cfg)
    found.selection, more = _selection(sweep, found.metric, model)
    found.notes = [*notes, *more, *_own_freezing(sweep)]
    return found


def with_backbone(cfg: Config, checkpoint: str) -> Config:
    """Returns the target task on the backbone of a checkpoint.

    Other settings of an ``init_cfg`` of type PretrainedBackbone are kept.
    """
    cfg = copy.deepcopy(cfg)
    old = cfg.model.backbone.get('init_cfg')
    ours = isinstance(old, Mapping) and str(old.get('type')).endswith(
        'PretrainedBackbone'
    )
    cfg.model.backbone.init_cfg = {
        **(old if ours else {}),
        'type': 'mmrobust.PretrainedBackbone',
        'checkpoint': checkpoint,
    }
    return cfg


def loaded_digest(cfg: Config, model: Any) -> str:
    """Hashes the backbone without what its ``init_cfg`` lets start anew."""
    fresh = cfg.model.backbone.init_cfg.get('fresh') or ()
    return state_digest(model.backbone, fresh)


def _initialised(cfg: Config, eps: float, path: str) -> Any:
    """Builds the model, whose backbone must stay as the checkpoint has it."""
    task = with_backbone(cfg, path)
    try:
        model = MODELS.build(task.model)
        model.init_weights()
        check_normalization(model)
    except ConfigError as error:
        raise ConfigError(f'eps {short(eps)}: {error}') from error
    before = state_digest(model.backbone)
    initialize(model.backbone, dict(task.model.backbone.init_cfg))
    if state_digest(model.backbone) != before:
        raise ConfigError(
            f'{type(model.backbone).__name__} or the model changes weights of '
            f'{path!r} after they have been loaded: leave out other init_cfg of the '
            'model, and set zero_init_residual=False where the backbone has it.'
        )
    return model


def _keys(cfg: Config, split: str, model: nn.Module) -> list[str]:
    """Lists keys of an evaluation without attack, the usual ones first."""
    evaluator, loader = cfg[f'{split}_evaluator'], cfg[f'{split}_dataloader']
    given = trial_keys(evaluator, loader, model)
    # What a trial shows beats what is known of the metric's class.
    usual = [key for key in usual_keys(evaluator) if not given or key in given]
    return list(dict.fromkeys([*usual, *given]))


def _selection(
    sweep: Sweep, metric: str, model: nn.Module
) -> tuple[str | None, list[str]]:
    """Finds by which figure of the validation a learning rate is chosen."""
    cfg = sweep.cfg
    if len(sweep.lrs) == 1:
        return None, []

    def source(dataset: Mapping) -> dict:
        return {k: v for k, v in dataset.items() if k not in _PREPARATION}

    loader = cfg.get('val_dataloader')
    complete = loader and cfg.get('val_evaluator') and cfg.get('val_cfg') is not None
    if not complete or source(loader.dataset) == source(cfg.test_dataloader.dataset):
        return None, [
            'The learning rates were chosen on the test set, as the config has no '
            'validation set of its own: the figures favour every backbone a little.'
        ]
    name, _, rest = metric.partition('/')
    tested = (cfg.test_cfg or {}).get('attacks') or {}
    plain = rest if name in tested else metric  # as a validation without attack has it
    key = metric if (cfg.val_cfg or {}).get('attacks') else plain
    known = _keys(cfg, 'val', model)
    if known and plain not in known:
        raise ConfigError(
            f'the validation, which chooses the learning rate, gives no {key!r} but '
            f'{", ".join(known)}: make val_evaluator the same as test_evaluator.'
        )
    return key, [f'Learning rates were chosen by {key} on the validation set.']


def _own_freezing(sweep: Sweep) -> list[str]:
    """Notes what the config itself freezes, which mode full leaves so."""
    backbone = sweep.cfg.model.backbone
    frozen = backbone.get('frozen_stages', -1)
    settings = []
    if isinstance(frozen, int) and frozen >= 0:
        settings.append(f'frozen_stages={frozen}')
    if backbone.get('norm_eval'):
        settings.append('norm_eval=True')
    if (backbone.get('norm_cfg') or {}).get('requires_grad') is False:
        settings.append('norm_cfg.requires_grad=False')
    if not settings or 'full' not in sweep.modes:
        return []
    return [
        f'In mode full the backbone keeps what the config itself freezes '
        f'({", ".join(settings)}), as is usual for detectors.'
    ]
