"""The Markdown twin of the report."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from .boxes import boxes_section

if TYPE_CHECKING:
    from .robustness import RobustnessReport

# What the Markdown table shows of the metrics, where they exist.
_SHOWN = (
    *('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'segm_mAP', 'PQ', 'mAP', 'AP50'),
    *('top1', 'top5'),
)


def table(report: RobustnessReport) -> str:
    """The figures as a Markdown table, one row per attack."""
    shown = [k for k in report.benign if k.split('/')[-1] in _SHOWN] or list(
        report.benign
    )
    names = [key.split('/')[-1] for key in shown]
    rows = [
        ['attack', 'norm', 'eps', 'steps', 'objective', *names],
        ['---'] * 5 + ['---:'] * len(names),
        ['none (benign)', '', '', '', '', *_numbers(report.benign, shown)],
    ]
    for attack in report.attacks:
        settings = attack.settings
        steps = str(settings.get('num_steps', ''))
        if settings.get('restarts', 1) > 1:
            steps += f' x {settings["restarts"]}'
        rows.append(
            [
                attack.name,
                str(settings.get('norm')),
                f'{settings.get("eps", 0):g}',
                steps,
                str(settings.get('objective') or 'none'),
                *_numbers(attack.metrics, shown),
            ]
        )
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def markdown(report: RobustnessReport, complete: bool = True) -> str:
    """The Markdown twin."""
    lines = ['# Robustness report', '']
    if not complete:
        lines += ['**Not complete: attacks are still to be run.**', '']
    lines += [
        report.table(),
        '',
        'eps in pixel units of 0-255, on the network input.',
    ]
    passes = [('none (benign)', report.benign_boxes)]
    passes += [(attack.name, attack.boxes) for attack in report.attacks]
    lines += boxes_section(passes, report.worst_case)
    warnings = [f'- {text}' for text in report.checks] + [
        f'- {attack.name}: {text}'
        for attack in report.attacks
        for text in attack.checks
    ]
    lines += ['', '## Checks', '', *(warnings or ['No warnings.'])]
    lines += ['', '## Cost', '', '| attack | forwards | backwards | seconds |']
    lines += ['| --- | ---: | ---: | ---: |']
    lines += [
        f'| {a.name} | {a.forwards} | {a.backwards} | {a.seconds:.1f} |'
        for a in report.attacks
    ]
    facts = {
        'config': report.config,
        'checkpoint': report.checkpoint,
        'sha256': report.checkpoint_sha256,
        'seed': report.seed,
        'dataset': _dataset(report),
        'versions': ', '.join(f'{k} {v}' for k, v in report.versions.items()),
        **report.environment,
    }
    facts['command'] = shlex.join(report.environment.get('command', ()))
    lines += ['', '## How to repeat it', '']
    lines += [f'- {key}: {value}' for key, value in facts.items()]
    return '\n'.join(lines) + '\n'


def _dataset(report: RobustnessReport) -> str:
    # A folder of classes has no annotation file.
    keys = ('ann_file', 'data_root', 'type')
    name = next((report.dataset[k] for k in keys if report.dataset.get(k)), '')
    return f'{name}, {report.dataset["num_images"]} images'


def _numbers(metrics: dict[str, Any], keys: list[str]) -> list[str]:
    return [
        f'{metrics[key]:.3f}' if isinstance(metrics.get(key), (int, float)) else '-'
        for key in keys
    ]
