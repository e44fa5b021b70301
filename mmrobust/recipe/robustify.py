"""One call that makes a standard mmdet config robust."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import ConfigError
from ..registry import ADVERSARIES
from ..threat import ThreatModel
from ..utils.configs import as_text, innermost, read_config, type_name
from ..utils.validation import did_you_mean, positive_int, to_pixels
from .backbones import set_weights, swap_backbone
from .evaluation import annotation_loaders, box_heads, follow_paper, set_evaluation
from .schedule import convert_hooks, convert_loop, convert_schedulers

# Adversaries by the name of the training method.
METHODS = {
    'free': 'FreeAdversary',
    'pgd': 'PGDAdversary',
    'fast': 'PGDAdversary',
    'mtd': 'MTDAdversary',
    'cwat': 'CWATAdversary',
    'pbcat': 'PBCATAdversary',
    'mixed': 'PGDAdversary',
    'none': 'NoAdversary',
}
# What the method 'mixed' draws among.
_MIXTURE = ('total', 'mislabel', 'dag', 'vanish')
PRESETS = ('default', 'paper')
# Updates per batch, and those of a training relative to a standard one, of methods that
# replay batches; of the others both are 1.
_REPLAYS = {'free': 4, 'pbcat': 8}
_UPDATES = {'free': 2.0, 'pbcat': 4.0}
# torch's, of optimizers whose config names none.
_DEFAULT_LR = 1e-3


def robustify(
    cfg: Config | str,
    method: str = 'free',
    *,
    norm: str = 'linf',
    eps: float | str = 4,
    replays: int | None = None,
    num_steps: int | None = None,
    schedule: float | None = None,
    preset: str = 'default',
    backbone: str | None = None,
    backbone_weights: str | None = None,
) -> Config:
    """Turns a standard mmdet config into its robust variant.

    The recipe is that of arXiv 2305.17438: the adversarial loop with its schedule,
    AdamW with the backbone's learning rate x0.1 after all other rules, gradient
    clipping, and the attack evaluation as test loop. Data, model and hooks stay, and
    so do an AdamW's learning rate and a clipping that are there already.

    >>> import mmrobust
    >>> cfg = mmrobust.robustify('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    >>> cfg.train_cfg.type
    'mmrobust.AdvEpochBasedTrainLoop'

    Args:
        cfg: a config, a config file or a name like ``'mmdet::fcos/...'``; it is not
            changed.
        method: ``'free'`` (FreeAT), ``'pgd'`` (PGD-AT), ``'fast'`` (fast AT),
            ``'mtd'``, ``'cwat'``, ``'pbcat'``, ``'mixed'`` (PGD-AT whose objective is
            drawn for each batch) or ``'none'`` (standard training, same recipe).
        norm: ``'linf'``, ``'l2'`` or ``'l1'``.
        eps: radius in pixel units of 0-255, or text like ``'4/255'``.
        replays: updates per batch of ``'free'``, by default 4, and ``'pbcat'``, 8.
        num_steps: steps of the inner attack of ``'pgd'`` and ``'mixed'`` (default 3),
            ``'mtd'`` and ``'cwat'`` (default 1).
        schedule: number of updates relative to the config's own training; 2 for
            ``'free'`` and 4 for ``'pbcat'`` as in their papers, else 1. Passes over the
            data follow.
        preset: ``'default'``, or ``'paper'`` for what the published code does
            differently (see ``configs/_base_/paper.py``).
        backbone: key of ``BACKBONES`` to swap in, with matching neck channels and
            normalisation.
        backbone_weights: file or URL of the backbone's weights; ``'none'`` for none.

    Returns:
        The robust config. ``dump`` writes it as a file that stands alone.

    Raises:
        ConfigError: for what cannot be converted, with the reason.
    """
    cfg = as_text(read_config(cfg) if isinstance(cfg, str) else cfg)
    if method not in METHODS:
        raise ConfigError(
            f'method {method!r} is unknown{did_you_mean(method, METHODS)}: choose from '
            f'{", ".join(METHODS)}.'
        )
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is unknown: choose 'default' or 'paper'.")
    if schedule is not None and not 0 < schedule < float('inf'):
        raise ConfigError(f'schedule={schedule!r} must be a finite number above 0.')
    if replays is not None and method not in _REPLAYS:
        raise ConfigError(
            f'replays={replays!r} has no meaning for the method {method!r}, which '
            'updates once per batch: leave it out.'
        )
    replays = _REPLAYS.get(method, 1) if replays is None else replays
    replays = positive_int(replays, 'replays')
    adversary = _adversary(method, norm, eps, replays, num_steps)
    ADVERSARIES.build(deepcopy(adversary))  # refuses impossible settings
    radius = ThreatModel(norm, to_pixels(eps, norm=norm)).eps
    _refuse_model(cfg.get('model'))
    updates = schedule or _UPDATES.get(method, 1.0)
    length = convert_loop(cfg, adversary, replays, updates)
    _refuse_optimizer(cfg.get('optim_wrapper'), replays)
    _refuse_dataset(cfg.get('train_dataloader'))
    if backbone is not None:
        swap_backbone(cfg, backbone, backbone_weights)
    elif backbone_weights is not None:
        set_weights(cfg, backbone_weights)
    convert_schedulers(cfg, length, cfg.optim_wrapper.optimizer.get('lr', _DEFAULT_LR))
    convert_hooks(cfg, length)
    _set_optimizer(cfg)
    for head in box_heads(cfg.model):
        if type_name(head) == 'SSDHead':  # mmdet 3.3's own cannot predict
            head['type'] = 'mmrobust.SSDHead'
    set_evaluation(cfg, norm, radius)
    if preset == 'paper':
        follow_paper(cfg, method)
    imports = ConfigDict(cfg.get('custom_imports') or {})
    own = imports.get('imports') or []
    own = [own] if isinstance(own, str) else own
    # First: it brings mmcv's operators, which the others may import.
    imports.imports = list(dict.fromkeys(['mmrobust', *own]))
    imports.setdefault('allow_failed_imports', False)
    cfg.custom_imports = imports
    return cfg


def _adversary(
    method: str, norm: str, eps: float | str, replays: int, num_steps: int | None
) -> dict[str, Any]:
    settings: dict[str, Any] = {'norm': norm, 'eps': eps}
    if num_steps is not None:
        if method not in ('pgd', 'mixed', 'mtd', 'cwat'):
            raise ConfigError(
                f'num_steps={num_steps!r} has no meaning for the method {method!r}: '
                'leave it out.'
            )
        settings['num_steps'] = num_steps
    if method == 'none':
        settings = {}
    elif method in _REPLAYS:
        settings['replays'] = replays
    elif method == 'mixed':
        settings['objective'] = {'name': 'mixed', 'of': list(_MIXTURE)}
    elif method == 'fast':
        settings.update(step_size=1.25 * to_pixels(eps), num_steps=1)
    return {'type': f'mmrobust.{METHODS[method]}', **settings}


def _refuse_model(model: Any) -> None:
    if not model:
        raise ConfigError('the config has no model.')
    if type_name(model).endswith('Classifier'):
        raise ConfigError(
            f'{model.type} is a classifier, and the recipe is one for detectors: set '
            'train_cfg as the configs in configs/pretrain do.'
        )
    preprocessor = type_name(model.get('data_preprocessor'))
    if 'MultiBranch' in preprocessor:
        raise ConfigError(
            f'{model.type} takes several branches of images ({preprocessor}), which '
            'adversarial training does not support: use a model with a single input.'
        )
    if not isinstance(model.get('backbone'), dict):
        raise ConfigError(
            f'{type_name(model)} has no backbone in the config (it has '
            f'{", ".join(k for k in model if k != "type")}), and the recipe needs one: '
            'write custom_imports, train_cfg and optim_wrapper by hand, as in "In your '
            'own mmdet project" of the README, with paramwise_cfg.backbone_key.'
        )


def _refuse_optimizer(wrapper: Any, replays: int) -> None:
    if not isinstance(wrapper, dict):
        raise ConfigError('the config has no optim_wrapper, so nothing to learn with.')
    optimizer = wrapper.get('optimizer')
    if not isinstance(optimizer, dict) or not type_name(optimizer):
        raise ConfigError(
            'optim_wrapper.optimizer is not a single dict(type=...), and adversarial '
            "training knows one optimizer: write optimizer=dict(type='AdamW', lr=1e-4)."
        )
    constructor = type_name({'type': wrapper.get('constructor')})
    if constructor not in ('', 'DefaultOptimWrapperConstructor'):
        raise ConfigError(
            f'the config has optimizer rules of its own ({constructor}), which the '
            'rule for the backbone would replace: remove optim_wrapper.constructor '
            'and the paramwise_cfg that belongs to it.'
        )
    counts = wrapper.get('accumulative_counts', 1)
    if counts > 1 and replays > 1:
        raise ConfigError(
            f'FreeAT replays each batch, so accumulative_counts={counts} would '
            "accumulate one batch with itself: set it to 1, or use the method 'pgd'."
        )


def _refuse_dataset(loader: Any) -> None:
    if not isinstance(loader, dict) or 'dataset' not in loader:
        raise ConfigError('the config has no train_dataloader with a dataset.')
    for dataset in innermost(loader['dataset']):
        loading = annotation_loaders(dataset.get('pipeline'))
        # True is the default of all that load annotations.
        if not any(transform.get('with_bbox', True) for transform in loading):
            raise ConfigError(
                f'the training pipeline of {type_name(dataset)} loads no boxes, and '
                "there is nothing else to attack: add dict(type='LoadAnnotations', "
                'with_bbox=True) to it.'
            )


def _set_optimizer(cfg: Config) -> None:
    """AdamW as in arXiv 2305.17438; what belongs to the detector's own rules stays."""
    wrapper = cfg.optim_wrapper
    adamw = type_name(wrapper.optimizer) == 'AdamW'
    own = wrapper.optimizer if adamw else ConfigDict()
    has_batch_norm = 'Res' in type_name(cfg.model.backbone)
    wrapper.optimizer = ConfigDict(
        type='AdamW',
        lr=own.get('lr', 1e-4),
        betas=own.get('betas', (0.9, 0.999)),
        weight_decay=0.1 if has_batch_norm else 0.05,
    )
    rules = ConfigDict(wrapper.get('paramwise_cfg') or {})
    rules.backbone_lr_mult = 0.1
    if has_batch_norm:
        rules.norm_decay_mult = 0.0
    elif 'bias_decay_mult' in rules:
        # Without a rule for norms, their biases would follow that for biases.
        rules.setdefault('norm_decay_mult', 1.0)
    wrapper.paramwise_cfg = rules
    wrapper.constructor = 'mmrobust.BackboneLrOptimWrapperConstructor'
    if not wrapper.get('clip_grad'):
        wrapper.clip_grad = ConfigDict(max_norm=100, norm_type=2)
