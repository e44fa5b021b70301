"""The preset ``paper``: what the code of arXiv 2305.17438 does differently.

The same settings as in ``configs/_base_/paper.py`` and ``configs/paper/``. Flaws that
falsify results are not followed: the bound on the losses is off in attacks, sampling
is seeded, class counts are those of the training set, and no checkpoint is chosen by
the reported figures.
"""

from __future__ import annotations

from mmengine.config import Config

from ..errors import ConfigError
from .evaluation import box_heads

_BOUND = 6


def follow_paper(cfg: Config, method: str) -> None:
    """Changes a converted config to the published settings.

    Raises:
        ConfigError: for a method other than FreeAT, and for a model whose losses the
            published objective does not know.
    """
    if method != 'free':
        raise ConfigError(
            f"the preset 'paper' is FreeAT, and the method is {method!r}: use 'free'."
        )
    heads = list(box_heads(cfg.model))
    if not heads or not all({'loss_cls', 'loss_bbox'} <= set(head) for head in heads):
        raise ConfigError(
            f'{cfg.model.type} has no heads with loss_cls and loss_bbox in the config, '
            "which the preset 'paper' attacks: use the preset 'default'."
        )
    cfg.train_cfg.adversary.update(objective='cls+reg', carry='run')
    attacks = (cfg.get('test_cfg') or {}).get('attacks')
    if attacks:
        for name in list(attacks):
            if name in ('cls', 'reg', 'cwa'):
                attacks[name].keep_best = False
            else:
                attacks.pop(name)
    rules = cfg.optim_wrapper.paramwise_cfg
    factor = rules.pop('backbone_lr_mult')
    custom = dict(rules.get('custom_keys') or {})
    usual = custom.get('backbone', {}).get('lr_mult', 1.0)
    custom['backbone'] = {'lr_mult': usual * factor, 'decay_mult': 1.0}
    rules.custom_keys = custom
    cfg.optim_wrapper.constructor = 'DefaultOptimWrapperConstructor'
    if 'roi_head' in cfg.model:
        for head in heads:
            _bound(head, 'loss_cls')
            _bound(head, 'loss_bbox', per='row')
    elif 'decoder' not in cfg.model:  # not a DETR
        for head in heads:
            _bound(head, 'loss_cls')


def _bound(head: dict, name: str, **settings: str) -> None:
    loss = head[name]
    head[name] = {
        **loss,
        'type': 'mmrobust.BoundedLoss',
        'loss': loss['type'],
        'bound': _BOUND,
        **settings,
    }
