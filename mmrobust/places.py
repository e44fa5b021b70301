"""Finds in a config what was being built when an error was raised."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

from mmengine.config import Config

# What mmengine's Runner does with which part of a config.
PARTS = {
    'setup_env': 'env_cfg',
    'set_randomness': 'randomness',
    'build_logger': 'log_level',
    'build_message_hub': 'experiment_name',
    'build_visualizer': 'visualizer',
    'build_model': 'model',
    'wrap_model': 'model_wrapper_cfg',
    'scale_lr': 'auto_scale_lr',
    'build_optim_wrapper': 'optim_wrapper',
    'build_param_scheduler': 'param_scheduler',
    'build_evaluator': 'evaluator',
    'build_dataloader': 'dataloader',
    'build_train_loop': 'train_cfg',
    'build_val_loop': 'val_cfg',
    'build_test_loop': 'test_cfg',
    'build_log_processor': 'log_processor',
    'register_default_hooks': 'default_hooks',
    'register_custom_hooks': 'custom_hooks',
    '_check_scheduler_cfg': 'param_scheduler',
    '_maybe_compile': 'compile',
    'load_or_resume': 'load_from',
    '_init_model_weights': 'init_cfg',
    'dump_config': 'work_dir',
}


def place_of(error: BaseException) -> str:
    """Where in the config stands what could not be built, or nothing."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    path, _ = located(frames)
    return '.'.join(path)


def part_of(frame: FrameType) -> str:
    """The top-level key of the config that a method of the Runner works on."""
    part = PARTS[frame.f_code.co_name]
    if part not in ('evaluator', 'dataloader'):
        return part
    outer: FrameType | None = frame
    while outer is not None:
        if split := _split(outer):
            return f'{split}_{part}'
        outer = outer.f_back
    return part


def _split(frame: FrameType) -> str:
    """Which loop a method of the Runner builds, if any."""
    name = frame.f_code.co_name.removeprefix('build_').removesuffix('_loop')
    return name if f'build_{name}_loop' == frame.f_code.co_name else ''


def place(frames: list[FrameType]) -> str:
    """Path and type of what the innermost builder was to build."""
    path, kind = located(frames)
    where = '.'.join(path)
    if not isinstance(kind, str):
        builder = next((PARTS[n] for n in _names(frames) if n in PARTS), 'the config')
        return where or f'a part of {builder}'
    return f'{where} ({kind})' if where else kind


def located(frames: list[FrameType]) -> tuple[list[str], Any]:
    """Path and type of what the innermost builder was to build, as far as known."""
    asked = [
        frame.f_locals.get('cfg')
        for frame in frames
        if frame.f_code.co_name == 'build_from_cfg'
    ]
    parts = [each for each in asked if isinstance(each, Mapping)]
    kind = parts[-1].get('type') if parts and parts[-1] is asked[-1] else None
    kind = getattr(kind, '__name__', kind)
    root: Any = next((cfg for cfg in map(_config, frames) if cfg is not None), {})
    split = next(filter(None, map(_split, reversed(frames))), 'none')
    path: list[str] = []
    node: Any = root
    for part in parts:
        # A loop builds its dataloader, which stands beside it and not inside.
        for start, before in ((node, path), (root, [])):
            # What fits best, or as well and belongs to the loop that is built.
            found = max(
                _alike(start, part),
                default=None,
                key=lambda each: (each[0], each[1][0].startswith(split), each[2]),
            )
            if found is not None:
                _, keys, _, node = found
                path = [*before, *keys]
                break
        else:
            path, node = [], root
    if asked and not isinstance(asked[-1], Mapping):
        path = next(_equal(root, asked[-1]), path)
    return path, kind


def _names(frames: list[FrameType]) -> Iterator[str]:
    return (frame.f_code.co_name for frame in reversed(frames))


def _config(frame: FrameType) -> Any:
    cfg = frame.f_locals.get('cfg')
    return cfg if isinstance(cfg, (Mapping, Config)) else None


def _alike(
    node: Any, part: Mapping, path: tuple[str, ...] = ()
) -> Iterator[tuple[int, tuple[str, ...], int, Any]]:
    """Where in a config something of the same type stands, and how many settings agree.

    Not where the very same stands: mmengine copies configs, and models change theirs.
    """
    for key, value in _items(node):
        here = (*path, str(key))
        if isinstance(value, Mapping) and value.get('type') == part.get('type'):
            surplus = len(set(value) - set(part))
            yield _agreement(value, part), here, -surplus, value
        yield from _alike(value, part, here)


def _equal(node: Any, value: Any, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Where in a config a value stands that is no part of it by its type."""
    if type(node) is type(value) and node == value:
        yield list(path)
    for key, inner in _items(node):
        yield from _equal(inner, value, (*path, str(key)))


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, (list, tuple)):
        return enumerate(node)
    return node.items() if isinstance(node, (Mapping, Config)) else ()


def _agreement(one: Mapping, other: Mapping) -> int:
    count = 0
    for key, value in other.items():
        try:
            count += bool(key in one and one[key] == value)
        except (TypeError, ValueError, RuntimeError):  # what == makes of arrays
            continue
    return count
