"""The ``init_cfg`` that loads weights of any known source, completely or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import HOOKS, WEIGHT_INITIALIZERS
from ..utils.models import bare_model
from .architectures import recognise
from .checkpoints import misfits
from .families import QUICK_GELU
from .normalization import note
from .renaming import find_layout, rename, to_mm
from .sources import Weights, activation_of, converted_normalization, read_weights
from .tables import fit_tables


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    r"""An ``init_cfg`` that loads published weights and leaves no backbone half random.

    The file's source is recognised by its names: MadryLab's, revisiting-at's,
    RobustBench's, ARES's, AdvXL's, CLIP's, the detectors and backbones of arXiv
    2305.17438, timm's, torchvision's, and OpenMMLab's own. mmengine's ``Pretrained``
    loads what fits and warns about the rest, so a wrong key prefix silently gives a
    random backbone, and the detector on it is not robust.

    The normalisation that the file asks for is kept with the backbone, where
    :func:`~.normalization.check_normalization` compares it with the data
    preprocessor's.

    Args:
        checkpoint: file or URL.
        fresh: regular expressions of weights that may be absent from the file because
            they do not exist in a classifier, such as ``r'norm[0-2]\.'`` of a ConvNeXt
            with four outputs.
        normalization: ``'imagenet'``, ``'unit'``, ``'half'``, ``'clip'`` or a dict with
            ``mean`` and ``std`` in pixel units of 0-255, for files that do not tell
            theirs.
        trust: run what code the file holds (some sources pickle it).

    Raises:
        ConfigError: when called, if the file cannot be read, its names are unknown, it
            lacks weights that are not in ``fresh``, a CLIP tower's is known to be of
            another activation, or another step of the same ``init_cfg`` would overwrite
            them.
    """

    # Which weights of mmpretrain's classifiers are the module's own.
    _part = 'backbone.'

    def __init__(
        self,
        checkpoint: str,
        fresh: Sequence[str] = (),
        normalization: Any = None,
        trust: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.fresh = [re.compile(pattern) for pattern in fresh]
        self.normalization = normalization
        self.trust = trust

    def __call__(self, module: nn.Module) -> None:
        """Loads the weights into a backbone."""
        self._refuse_later_steps(module)
        weights = read_weights(self.checkpoint, self.trust, self.normalization)
        own = module.state_dict()
        given = {}
        for name, value in rename(weights, {self._part + k for k in own}).items():
            if name.startswith(self._part):
                given[name.removeprefix(self._part)] = value
            else:
                weights.left_out[name.split('.')[0]] += 1
        found = {name: given[name] for name in own if name in given}
        resized = fit_tables(module, own, found)
        wrong = [name for name in misfits(own, found) if name not in resized]
        missing = [n for n in wrong if not any(p.match(n) for p in self.fresh)]
        if missing:
            raise ConfigError(_refusal(weights, module, own, found, missing))
        unused = [name for name in given if name not in own]
        self._refuse_surplus(weights, module, unused)
        _refuse_other_activation(weights, module, own)
        loaded = {name: value for name, value in found.items() if name not in wrong}
        _initialise_children(module)
        module.load_state_dict(loaded, strict=False)
        note(module, weights.normalization)
        left_out = [f'{part} ({count})' for part, count in weights.left_out.items()]
        print_log(
            f'{type(module).__name__}: {len(loaded)} weights from {self.checkpoint} '
            f'({weights.source})'
            + _list(', resized: ', resized)
            + _list(', initialised anew: ', wrong)
            + _list(', left out: ', [*unused, *left_out])
            + (
                f'; they need images of {weights.normalization}'
                if weights.normalization
                else '; the file does not tell the normalisation of the images: set '
                'normalization to have it checked'
            ),
            logger='current',
        )

    def _refuse_later_steps(self, module: nn.Module) -> None:
        """Of a list of steps, mmengine moves only its own ``Pretrained`` to the end."""
        steps = getattr(module, 'init_cfg', None)
        if not isinstance(steps, (list, tuple)):
            return
        last = steps[-1]['type']
        name = last if isinstance(last, str) else last.__name__
        if name.rpartition('.')[2] != type(self).__name__:
            raise ConfigError(
                f'init_cfg of {type(module).__name__}: {name} comes after '
                f'{type(self).__name__} and would overwrite the weights of '
                f'{self.checkpoint!r}: put {type(self).__name__} last.'
            )

    def _refuse_surplus(
        self, weights: Weights, module: nn.Module, unused: Sequence[str]
    ) -> None:
        """A larger network's first blocks would fit a smaller one without a word."""
        parts = dict(module.named_modules())
        wrong = []
        for name in unused:
            steps = name.split('.')
            part = '.'.join(steps[: 2 if steps[0] == 'backbone' else 1])
            # A part that the model leaves out as a whole (a level, a norm) is none.
            empty = isinstance(parts.get(part), nn.ModuleList) and not len(parts[part])
            if part in parts and not empty and steps[-1] != 'num_batches_tracked':
                wrong.append(name)
        if wrong:
            raise ConfigError(
                f'{self.checkpoint!r} has {len(wrong)} weights that '
                f'{type(module).__name__} has no place for (for instance {wrong[0]!r}'
                f'); the file is {_name_of(weights)}: choose the backbone that fits.'
            )


@WEIGHT_INITIALIZERS.register_module()
class PretrainedClassifier(PretrainedBackbone):
    r"""As PretrainedBackbone, for a whole classifier of mmpretrain with its head.

    ``fresh=[r'head\.']`` starts the head anew, to learn other classes; without it a
    file of another number of classes is refused.
    """

    _part = ''


def _refuse_other_activation(
    weights: Weights, module: nn.Module, own: Mapping[str, Tensor]
) -> None:
    """No weight shows which activation a CLIP tower has been trained with."""
    needed = activation_of(weights)
    if needed is None or not any('pre_norm.' in name for name in own):
        return
    kinds = {type(part).__name__ for part in module.modules()}
    there = {'QuickGELU': 'quick_gelu', 'GELU': 'gelu'}
    found = [name for kind, name in there.items() if kind in kinds]
    if found and needed not in found:
        kind = QUICK_GELU if needed == 'quick_gelu' else 'GELU'
        raise ConfigError(
            f'{weights.path!r} is a tower of CLIP with {needed} and '
            f'{type(module).__name__} has {found[0]}: set layer_cfgs=dict(act_cfg='
            f'dict(type={kind!r})) in the backbone.'
        )


def _refusal(
    weights: Weights,
    module: nn.Module,
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    missing: list[str],
) -> str:
    """Says what a file lacks: the head of a classifier, or more than that."""
    path, model, first = repr(weights.path), type(module).__name__, missing[0]
    if all(name.startswith('head.') for name in missing):
        there = [f'{len(found[name])} classes' for name in missing if name in found]
        return (
            f'{path} has {[*there, "no head of a classifier"][0]} and {model} has '
            f"{len(own[first])}: set num_classes, or add fresh=[r'head\\.'] to learn a "
            'new head.'
        )
    reason = (
        f'of shape {list(found[first].shape)} in the file and '
        f'{list(own[first].shape)} in the model'
        if first in found
        else 'which it does not have'
    )
    return (
        f'{path} lacks {len(missing)} of the {len(own)} weights of {model} (for '
        f'instance {first!r}, {reason}); the file is {_name_of(weights)}: is it the '
        'right file and backbone?'
    )


def _name_of(weights: Weights) -> str:
    """Returns the architecture in words, as far as it is recognised."""
    layout = find_layout(weights.tensors)
    if layout is not None:
        try:
            found = recognise(to_mm(layout, weights.tensors)[0])
            return f'{found.name} ({weights.source})'
        except ConfigError:
            pass
    example = next(iter(weights.tensors), 'no tensor')
    return f'from {weights.source} and has, for instance, {example!r}'


@HOOKS.register_module()
class ConvertedWeightsHook(Hook):
    """Remembers how ``load_from`` weights of tools/convert_backbone.py want images.

    The adversarial train loops register it themselves and compare it with the data
    preprocessor. Notes of an ``init_cfg`` are gone with the weights they were about.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leaves the note with the model."""
        needed = converted_normalization(checkpoint)
        if needed is None or runner._resume:
            return
        model = bare_model(runner.model)
        for module in model.modules():
            note(module, None)
        note(model, needed)


def _initialise_children(module: nn.Module) -> None:
    """Runs the initialisation that would otherwise follow and overwrite the weights.

    mmengine initialises a module's children after its own ``init_cfg``, and backbones
    add steps of their own afterwards (zero residuals, position embeddings) that they
    leave out for an ``init_cfg`` of type ``Pretrained`` only.
    """
    child: Any
    for child in module.children():
        if hasattr(child, 'init_weights') and not getattr(child, 'is_init', False):
            child.init_weights()
            child.is_init = True
    for owner in (module, getattr(module, 'backbone', None)):
        if owner is not None and hasattr(owner, 'init_cfg'):
            owner.init_cfg = {'type': 'Pretrained', 'checkpoint': ''}


def _list(title: str, names: Sequence[str]) -> str:
    shown = ', '.join(names[:6]) + (', ...' if len(names) > 6 else '')
    return title + shown if names else ''
