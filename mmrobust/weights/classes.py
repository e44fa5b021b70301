"""Class counts of checkpoints."""

from __future__ import annotations

from torch import nn

from ..errors import ConfigError
from .fit import misfits, read_checkpoint, state_dict_of


def check_class_count(path: str, model: nn.Module) -> None:
    """Makes sure that a classifier's checkpoint was made for as many classes.

    Any other misfit is left to :func:`mmrobust.weights.check_checkpoint`.

    Args:
        path: the checkpoint.
        model: the bare classifier it is meant for.

    Raises:
        ConfigError: if all that does not fit is the number of outputs, naming both.
    """
    given = state_dict_of(read_checkpoint(path))
    given = {name.removeprefix('module.'): value for name, value in given.items()}
    own = model.state_dict()
    wrong = misfits(own, given)
    if not wrong or not all(name in given and given[name].ndim for name in wrong):
        return
    if any(given[name].shape[1:] != own[name].shape[1:] for name in wrong):
        return
    counts = {(len(given[name]), len(own[name])) for name in wrong}
    if len(counts) == 1:
        theirs, ours = counts.pop()
        raise ConfigError(
            f'checkpoint {path!r} is for {theirs} classes and the config for {ours}: '
            'set num_classes in model.head, or give the checkpoint of this config.'
        )
