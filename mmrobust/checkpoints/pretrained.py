"""Initialising a backbone from pre-trained weights, completely or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmengine.logging import print_log
from torch import nn

from ..errors import ConfigError
from ..registry import WEIGHT_INITIALIZERS
from .fit import misfits, read_checkpoint, state_dict_of

_PREFIXES = (
    '',
    'backbone.',
    'module.',
    'module.backbone.',
    'model.',
    'model.backbone.',
)


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    r"""An ``init_cfg`` that refuses to leave a backbone partly random.

    mmengine's ``Pretrained`` loads what fits and warns about the rest, so a wrong key
    prefix silently gives a random backbone, and the detector on it is not robust.

    Args:
        checkpoint: file or URL; the backbone's own keys, or with one of the prefixes
            ``backbone.``, ``module.``, ``model.`` or their combinations.
        fresh: regular expressions of weights that may be absent from the file because
            they do not exist in a classifier, such as ``r'norm[0-2]\.'`` of a ConvNeXt
            with four outputs.

    Raises:
        ConfigError: when called, if the file cannot be read or lacks other weights.
    """

    def __init__(self, checkpoint: str, fresh: Sequence[str] = ()) -> None:
        self.checkpoint = checkpoint
        self.fresh = [re.compile(pattern) for pattern in fresh]

    def __call__(self, module: nn.Module) -> None:
        """Loads the weights into a backbone."""
        given = state_dict_of(read_checkpoint(self.checkpoint))
        own = module.state_dict()
        prefix = max(_PREFIXES, key=lambda p: sum(p + name in given for name in own))
        found = {name: given[prefix + name] for name in own if prefix + name in given}
        wrong = misfits(own, found)
        missing = [n for n in wrong if not any(p.match(n) for p in self.fresh)]
        if missing:
            raise ConfigError(
                f'{self.checkpoint!r} lacks {len(missing)} of the {len(own)} weights '
                f'of {type(module).__name__} (for instance {missing[0]!r}; the file '
                f'has, for instance, {next(iter(given), "no tensor")!r}): is it the '
                'right file?'
            )
        loaded = {
            name: found[name] for name in own if name not in wrong and name in found
        }
        module.load_state_dict(loaded, strict=False)
        print_log(
            f'{type(module).__name__}: {len(loaded)} weights from {self.checkpoint}'
            + (f', initialised anew: {", ".join(wrong)}' if wrong else ''),
            logger='current',
        )
