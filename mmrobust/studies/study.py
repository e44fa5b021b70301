"""Parts that both studies share: options, Runners, the figure, folder and report."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ..errors import ConfigError, doing
from ..report import package_versions
from ..utils.files import finite, replacing, write_atomically
from ..utils.runner import build_runner, release
from ..utils.store import Store

Value = TypeVar('Value')

# Settings without influence on the figures.
_IGNORED = re.compile(
    r'(work_dir|launcher|log_level|log_processor|visualizer|vis_backends|env_cfg'
    r'|experiment_name|default_hooks|resume|load_from|optim_wrapper\.optimizer\.lr'
    r'|randomness\.seed|model_wrapper_cfg|(.+[.\]])?(num_workers|persistent_workers'
    r'|pin_memory))$'
)
_BOXES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
# Of usual metrics: prefix, setting that names figures and its default, their keys.
_USUAL: dict[str, tuple[str, str, Any, Sequence[str]]] = {
    'Accuracy': ('accuracy', 'topk', 1, ['top{}']),
    'SingleLabelMetric': (
        *('single-label', 'items', ('precision', 'recall', 'f1-score'), ['{}']),
    ),
    'CocoMetric': ('coco', 'metric', 'bbox', [f'{{}}_{end}' for end in _BOXES]),
    'VOCMetric': ('pascal_voc', '', ('mAP', 'AP50'), ['{}']),
    'CocoPanopticMetric': ('coco_panoptic', '', ('PQ', 'SQ', 'RQ'), ['{}']),
}
# Of CocoMetric, what has figures of these names.
_COCO = ('bbox', 'segm')
# Batches that a trial evaluates, with a head that has not learnt anything.
_BATCHES = 2


def say(text: str) -> None:
    """Prints how far a study is, on the main process."""
    if is_main_process():
        print(text, flush=True)


@contextmanager
def running(cfg: Config, name: str) -> Iterator[Runner]:
    """Builds one of several Runners of a process, and frees what it held afterwards.

    Args:
        cfg: its config, which is given an ``experiment_name``: Runners of one name
            share loggers, message hubs and visualizers.
        name: what that begins with.
    """
    cfg.experiment_name = f'{name}_{os.getpid()}_{time.time_ns()}'
    if cfg.get('visualizer'):
        cfg.visualizer.name = cfg.experiment_name
    runner = build_runner(cfg)
    try:
        yield runner
    finally:
        release(runner)


def each_once(option: str, values: Iterable[Value]) -> tuple[Value, ...]:
    """Returns the values of an option.

    Raises:
        ConfigError: if one is given twice.
    """
    found = tuple(values)
    for value in found:
        if found.count(value) > 1:
            raise ConfigError(f'{option} has {value} twice: give it once.')
    return found


def settings_of(node: Any, name: str = '') -> Any:
    """Returns the settings of a config that can change figures, as nested dicts."""
    if isinstance(node, Mapping):
        inner = {key: f'{name}.{key}' if name else str(key) for key in node}
        return {
            key: settings_of(value, inner[key])
            for key, value in node.items()
            if not _IGNORED.match(inner[key])
        }
    if isinstance(node, (list, tuple)):
        return [settings_of(each, f'{name}[{i}]') for i, each in enumerate(node)]
    return node


def open_store(
    folder: Path,
    run: Mapping[str, Any],
    file: str,
    results: Iterable[Path],
    **kwargs: Any,
) -> Store:
    """Opens the folder of a study, or of a part of it.

    Args:
        folder: where ``file`` says what the results were made with.
        run: what they depend on.
        file: its name.
        results: files that are there already; without any, ``file`` binds nobody.
        **kwargs: see :class:`mmrobust.utils.store.Store`.

    Raises:
        ConfigError: if the results were made with other settings, or unknown ones.
    """
    path, there = folder / file, any(True for _ in results)
    if there and not path.is_file():
        raise ConfigError(
            f'{folder} holds results but no {file}, so what they were made with is not '
            'known: give another --work-dir.'
        )
    if not there and is_main_process():  # others wait for it in the store
        path.unlink(missing_ok=True)
    return Store(folder, run, file=file, option='--work-dir', **kwargs)


# ---------------------------------------------------------------- the compared figure


def metrics_of(evaluator: Any) -> list[Mapping[str, Any]]:
    """Lists the metrics of an evaluator's config.

    Raises:
        ConfigError: for what is no config of metrics.
    """
    if isinstance(evaluator, Mapping):
        evaluator = evaluator.get('metrics', evaluator)
    found = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator or ()]
    for metric in found:
        if not isinstance(metric, Mapping) or 'type' not in metric:
            raise ConfigError(
                f'the evaluator of the config has {str(metric)[:80]!r}, which is no '
                'metric: give a dict with a type, or a list of such.'
            )
    return list(found)


def usual_keys(evaluator: Any) -> list[str]:
    """Lists keys of the metrics that are known here, the most usual one first."""
    keys: list[str] = []
    for metric in metrics_of(evaluator):
        kind = str(getattr(metric['type'], '__name__', metric['type'])).split('.')[-1]
        if kind not in _USUAL:
            continue
        prefix, setting, default, ends = _USUAL[kind]
        names = metric.get(setting) or default
        names = names if isinstance(names, (list, tuple)) else [names]
        if kind == 'CocoMetric':
            names = [name for name in names if name in _COCO]
        prefix = metric.get('prefix') or prefix
        keys += [f'{prefix}/{end.format(name)}' for name in names for end in ends]
    return keys


def trial_keys(evaluator: Any, loader: Any, model: nn.Module) -> list[str]:
    """Lists keys that an evaluation of a few batches gives.

    It also finds images that cannot be read and labels that do not fit before hours of
    training.

    Args:
        evaluator: its config.
        loader: config of the data loader.
        model: the bare model on its device.

    Returns:
        The keys; none where a metric cannot do with a few images, or a model that has
        not learnt anything finds no object.
    """
    built: Any = Runner.build_dataloader(loader, seed=0)
    metrics = Evaluator([dict(metric) for metric in metrics_of(evaluator)])
    metainfo = getattr(built.dataset, 'metainfo', None)
    if metainfo is not None:
        metrics.dataset_meta = metainfo
    training = model.training
    model.eval()
    size = 0
    with doing('evaluating a few batches, to see what figures there are'):
        for _, batch in zip(range(_BATCHES), built, strict=False):
            outputs = model.test_step(batch)  # type: ignore[operator]
            metrics.process(data_samples=outputs, data_batch=batch)
            size += len(outputs)
    model.train(training)
    try:
        return list(metrics.evaluate(size))
    except Exception as error:  # any metric of anybody
        print_log(f'Trial evaluation: {error}', logger='current')
        return []


def choose_metric(
    metric: str | None, keys: Iterable[str], cfg: Config
) -> tuple[str, list[str]]:
    """Chooses the key to compare.

    Args:
        metric: what the user wants, or None.
        keys: keys that the evaluation gives without attack, the preferred one first.
        cfg: the target task; attacks of its ``test_cfg`` give ``ATTACK/KEY``, too.

    Returns:
        The key, and notes for the report.

    Raises:
        ConfigError: for an unknown key, or None where no key is known.
    """
    known = list(dict.fromkeys(keys))
    if metric is None:
        if not known:
            raise ConfigError(
                "the evaluator's metrics are not known here: say with --metric which "
                'of their keys is compared.'
            )
        return known[0], []
    if not known:
        return metric, [
            f'Whether the evaluator gives {metric} could not be checked beforehand.'
        ]
    attacks = (cfg.get('test_cfg') or {}).get('attacks') or {}
    allowed = known + [f'{name}/{key}' for name in attacks for key in known]
    if metric not in allowed:
        raise ConfigError(
            f'--metric {metric!r} is not among what the test evaluator gives: choose '
            f'from {", ".join(allowed[:12])}{", ..." if len(allowed) > 12 else ""}.'
        )
    return metric, []


# ------------------------------------------------------------------------- the report


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Describes when, how and where a study was run, for its JSON file."""
    return {
        'command': list(command),
        'date': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
        'python': platform.python_version(),
        'platform': platform.platform(),
    }


def versions_text() -> str:
    """Names the versions of packages in one line."""
    return ', '.join(f'{name} {text}' for name, text in package_versions().items())


def markdown(
    title: str,
    missing: str,
    blocks: Iterable[str | None],
    checks: Sequence[str],
    facts: Sequence[str],
    more: Iterable[str | None] = (),
) -> str:
    """Writes the Markdown file of a study.

    Args:
        title: of the whole.
        missing: says what is still to be run, if anything is.
        blocks: the table and what explains it; None is left out here and below.
        checks: sentences that say what makes the figures doubtful.
        facts: lines that say how to repeat it.
        more: blocks between checks and facts.
    """
    parts = [
        f'# {title}',
        missing and f'**Not complete: {missing}.**',
        *blocks,
        '## Checks',
        '\n'.join(f'- {text}' for text in checks) or 'No warnings.',
        *more,
        '## How to repeat it',
        '\n'.join(f'- {fact}' for fact in facts),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty figure of so many inches, without a window."""
    drawn = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(drawn)
    return drawn


def write_report(
    folder: Path, name: str, content: dict, text: str, figure: Figure | None
) -> None:
    """Writes JSON, Markdown and picture of a study, each whole or not at all.

    Args:
        folder: where they go.
        name: their name without ending.
        content: of the JSON file.
        text: of the Markdown file.
        figure: the picture, if there is something to draw.
    """
    lines = json.dumps(finite(content), indent=2, default=str)
    write_atomically(folder / f'{name}.json', lines + '\n')
    write_atomically(folder / f'{name}.md', text)
    if figure is not None:
        with replacing(folder / f'{name}.png') as path:
            figure.savefig(path, dpi=200)
