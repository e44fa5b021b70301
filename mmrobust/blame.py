"""Tells from where an error was raised what the user can change about it.

A config is a program for libraries, and their errors say what broke and not which
setting broke it. An error while something is built, or while a dataset's files are
read, is taken for the user's; so is one of a model or a metric that this package did
not ask in a way of its own. Anything else is left to be a defect of ours.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from torch import nn

from .errors import ConfigError
from .places import PARTS, part_of, place

_LONGEST = 240

# Where mmengine's Runner reads checkpoints.
_LOADING = ('load_or_resume', '_init_model_weights')
# What holds the file that is being read, in functions that read.
_FILES = (
    *('annotation_file', 'xml_path', 'ann_file', 'img_path'),
    *('filename', 'checkpoint', 'resume_from', '_load_from'),
)


def blame(error: BaseException) -> str | None:
    """Says in one sentence which part of a config, or which file, an error is about.

    Args:
        error: what has been caught, with its traceback.

    Returns:
        None for an error that may well be a defect of this package.
    """
    error = _original(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = False  # whether this package was asked inside of what is looked at
    for index in reversed(range(len(frames))):
        frame = frames[index]
        found = _of_data(frame, frames[index:], error) or _of_build(
            frame, frames[: index + 1], frames[index:], error
        )
        if found is None and not ours:
            found = _of_use(frame, frames[: index + 1], frames[index:], error)
        if found is not None:
            return found
        ours = ours or _is_ours(frame)
    if not ours and any(_module(each) == 'mmengine.runner.runner' for each in frames):
        return (
            f'{_module(frames[-1])} failed without anything of mmrobust '
            f'({reason_of(error)}): check the config.'
        )
    return None


def model_trouble(error: BaseException) -> str | None:
    """Says what a model could not do with an ordinary batch; None if it is not its.

    Args:
        error: raised while the model was called by this package, as anyone would.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        if _is_call(frame):
            return _fails(frames, error)
        if _is_ours(frame):
            return None
    return None


@contextmanager
def models_own() -> Iterator[None]:
    """Around an ordinary use of a model: what breaks inside the model is its own.

    Raises:
        ConfigError: for what the model could not do.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        text = model_trouble(error)
        if text is None:
            raise
        raise ConfigError(text) from error


def reason_of(error: BaseException) -> str:
    """An error in a few words, without its end of sentence."""
    text = str(error)
    if 'Original Traceback' in text:  # of a worker process
        text = text.strip().splitlines()[-1]
        return short(text)
    if not text.strip():
        # A bare assertion says nothing but by its code.
        last = traceback.extract_tb(error.__traceback__)[-1:]
        text = last[0].line or '' if last else ''
    return short(f'{type(error).__name__}: {text}')


def short(text: str) -> str:
    """A text on one line, without addresses in memory, cut where it gets long."""
    text = re.sub(r'\x1b\[[0-9;]*m', '', text)  # colours
    text = re.sub(r' (object )?at 0x[0-9a-f]+', '', ' '.join(text.split()))
    text = text if len(text) <= _LONGEST else text[:_LONGEST].rstrip() + ' ...'
    return text.rstrip('.!?: ')


def _original(error: BaseException) -> BaseException:
    """What mmengine caught when it put the name of a hook to a TypeError."""
    inner = error.__context__
    if (
        isinstance(error, TypeError)
        and isinstance(inner, TypeError)
        and error.__suppress_context__
        and str(error).startswith(str(inner))
    ):
        return inner
    return error


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get('__name__', ''))


def _is_ours(frame: FrameType) -> bool:
    """Whether this package's own code runs, parts of models and tools aside."""
    name = _module(frame)
    others = 'mmrobust.models', 'mmrobust.cli', 'mmrobust.blame'
    return name.startswith('mmrobust.') and not name.startswith(others)


def _is_call(frame: FrameType) -> bool:
    return frame.f_code.co_name == '_call_impl' and _module(frame).startswith('torch.')


# ------------------------------------------------------------------ what was going on


def _of_data(
    frame: FrameType, inside: list[FrameType], error: BaseException
) -> str | None:
    """A file of the dataset is read, or an image goes through the pipeline."""
    name, module = frame.f_code.co_name, _module(frame)
    if name == '__call__' and isinstance(frame.f_locals.get('self'), _compose()):
        transform, data = frame.f_locals.get('t'), frame.f_locals.get('data')
        image = data.get('img_path') if isinstance(data, Mapping) else None
        return (
            f'{type(transform).__name__} of the pipeline cannot process '
            f'{image or "an image"} ({reason_of(error)}): check its settings, the '
            'image and its annotations.'
        )
    if name in ('load_data_list', 'full_init'):
        found = _file(inside) or _file([frame])
        if found:
            return (
                f'annotations cannot be read from {found} ({reason_of(error)}): is it '
                'complete and what the dataset expects?'
            )
    if module == 'pycocotools.coco' and name == '__init__':
        return (
            f'annotations cannot be read from {frame.f_locals.get("annotation_file")} '
            f"({reason_of(error)}): is it complete and in COCO's format?"
        )
    if name == '__getitem__' and module.startswith('mmengine.dataset'):
        kind = type(frame.f_locals.get('self')).__name__
        return (
            f'{kind} cannot give an image ({reason_of(error)}): check its settings and '
            'those of its sampler and batch_sampler.'
        )
    if name == '_next_index' and module.startswith('torch.utils.data'):
        return (
            f'the sampler of a data loader chooses no images ({reason_of(error)}): '
            'check sampler, batch_sampler and batch_size.'
        )
    if 'collate' in name and module.startswith(('mmengine.', 'torch.')):
        return (
            f'images cannot be put together to a batch ({reason_of(error)}): check '
            'batch_size, collate_fn and the last step of the pipeline.'
        )
    if module.startswith('torch.utils.data') and name == 'reraise':
        return f'a worker process cannot load the data ({reason_of(error)}).'
    return None


def _of_build(
    frame: FrameType,
    outside: list[FrameType],
    inside: list[FrameType],
    error: BaseException,
) -> str | None:
    """Something is made of a part of the config."""
    name, module = frame.f_code.co_name, _module(frame)
    if name == 'build_from_cfg' and module.startswith('mmengine.registry'):
        where = place(outside)
        return f'{where} cannot be built ({reason_of(error)}): check its settings.'
    if module == 'mmengine.runner.runner' and name in PARTS:
        if name in ('load_or_resume', '_init_model_weights') and (
            path := _file(inside)
        ):
            return f'checkpoint {path!r} cannot be loaded ({reason_of(error)}).'
        part = part_of(frame)
        return f'{part} of the config cannot be used ({reason_of(error)}): check it.'
    if module == 'mmengine.runner.runner' and name == '__init__':
        return f'the config cannot be used ({reason_of(error)}): check its settings.'
    return None


def _of_use(
    frame: FrameType,
    outside: list[FrameType],
    inside: list[FrameType],
    error: BaseException,
) -> str | None:
    """A model, a metric or a hook of a library works."""
    name, owner = frame.f_code.co_name, frame.f_locals.get('self')
    if name == 'evaluate' and hasattr(owner, 'compute_metrics'):
        return (
            f'{type(owner).__name__} cannot score the predictions '
            f'({reason_of(error)}): do its settings fit the dataset and the model?'
        )
    if name == 'call_hook' and _module(frame).startswith('mmengine.'):
        hook = frame.f_locals.get('hook')
        return (
            f'{type(hook).__name__} of the hooks failed ({reason_of(error)}): check '
            'its settings.'
        )
    if name == '_clip_grad' and _module(frame).startswith('mmengine.optim'):
        return (
            f'optim_wrapper.clip_grad={short(str(owner.clip_grad_kwargs))} '  # type: ignore
            f'cannot be used ({reason_of(error)}): check it.'
        )
    if _module(frame).startswith('torch.optim.') and name == 'step':
        return (
            f'{type(owner).__name__} of optim_wrapper cannot update the weights '
            f'({reason_of(error)}): check its settings.'
        )
    if _is_call(frame) and _is_stock(outside):
        return _fails(inside, error)
    return None


def _is_stock(outside: list[FrameType]) -> bool:
    """Whether a loop of mmengine called the model, and not this package's code."""
    for frame in reversed(outside):
        if _module(frame) == 'mmengine.runner.loops' or _is_ours(frame):
            return not _is_ours(frame)
    return True


def _fails(frames: list[FrameType], error: BaseException) -> str:
    owners = [frame.f_locals.get('self') for frame in frames]
    modules = [type(each) for each in owners if isinstance(each, nn.Module)]
    # A part of the config rather than its convolution.
    basic = 'torch.', 'mmcv.', 'mmengine.'
    named = [kind for kind in modules if not kind.__module__.startswith(basic)]
    part = (named or modules)[-1].__name__
    return (
        f'the model fails in its {part} without any attack ({reason_of(error)}): do '
        'its parts fit each other and the data?'
    )


def _compose() -> type:
    from mmengine.dataset import Compose

    return Compose


def _file(frames: list[FrameType]) -> str | None:
    """The file that the innermost of some functions reads."""
    for frame in reversed(frames):
        for name in _FILES:
            value = frame.f_locals.get(name)
            if value is None:
                value = getattr(frame.f_locals.get('self'), name, None)
            if isinstance(value, str) and value:
                return value
    return None
