"""The robustness report: one JSON file and a Markdown twin."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_distributed, is_main_process
from mmengine.runner import Runner

from .report_boxes import boxes_section

_PACKAGES = (
    ('mmrobust', 'mmrobust'),
    ('mmdet', 'onedl-mmdetection'),
    ('mmengine', 'onedl-mmengine'),
    ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    ('mmpretrain', 'onedl-mmpretrain'),
    ('torch',),
    ('torchvision',),
    ('numpy',),
    ('timm',),
    ('pyautoattack',),
)

# What the Markdown table shows of the metrics, where they exist.
_SHOWN = (
    *('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'segm_mAP', 'PQ', 'mAP', 'AP50'),
    *('top1', 'top5'),
)


@dataclass
class AttackResult:
    """Metrics of one attack and what they cost.

    Attributes:
        name: the attack's name.
        settings: norm, eps, step_size, num_steps, objective, restarts.
        metrics: as the evaluator gives them, without prefix.
        checks: sentences about anything that makes the figures doubtful.
        forwards: images that went forwards through the network for the attack.
        backwards: images that went backwards through it.
        seconds: wall time of the pass, predictions included.
        boxes: mAP with its interval, and counts of errors, if the model detects boxes.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    boxes: dict[str, Any] | None = None

    def sum_over_processes(self) -> AttackResult:
        """Adds up the passes that the processes of a distributed run made."""
        if is_distributed():
            counts = torch.tensor([self.forwards, self.backwards], dtype=torch.float64)
            all_reduce(counts)
            self.forwards, self.backwards = (int(count) for count in counts)
        return self

    def as_dict(self) -> dict[str, Any]:
        """The attack's entry in the report."""
        return {
            'name': self.name,
            **self.settings,
            'metrics': self.metrics,
            **({'boxes': self.boxes} if self.boxes else {}),
            'checks': self.checks,
            'cost': {
                'forwards': self.forwards,
                'backwards': self.backwards,
                'seconds': round(self.seconds, 2),
            },
        }


@dataclass
class RobustnessReport:
    """Everything needed to read the figures and to repeat the run.

    Attributes:
        config: path of the config file.
        checkpoint: path of the checkpoint.
        checkpoint_sha256: its hash, if it is a local file.
        seed: seed of the attacks.
        versions: package versions.
        dataset: ``ann_file`` and ``num_images``.
        benign: metrics without attack.
        attacks: one result per attack.
        benign_boxes: as ``AttackResult.boxes``, without attack.
        worst_case: the lowest mAP that a choice of passes, image by image, was found
            to give.
    """

    config: str | None
    checkpoint: str | None
    checkpoint_sha256: str | None
    seed: int
    versions: dict[str, str]
    dataset: dict[str, Any]
    checks: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    config_text: str = ''
    benign: dict[str, Any] = field(default_factory=dict)
    attacks: list[AttackResult] = field(default_factory=list)
    benign_boxes: dict[str, Any] | None = None
    worst_case: dict[str, Any] | None = None

    @classmethod
    def start(
        cls, runner: Runner, dataset: Any, seed: int, notes: list[str]
    ) -> RobustnessReport:
        """Collects what is known before the first pass."""
        checkpoint = getattr(runner, '_load_from', None)
        device = next(runner.model.parameters()).device
        return cls(
            config=runner.cfg.filename,
            checkpoint=checkpoint,
            checkpoint_sha256=file_sha256(checkpoint),
            seed=seed,
            versions=package_versions(),
            dataset={
                'type': type(dataset).__name__,
                'ann_file': getattr(dataset, 'ann_file', None),
                'data_root': getattr(dataset, 'data_root', None),
                'num_images': len(dataset),
            },
            checks=list(notes),
            environment={
                'command': sys.argv,
                'date': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
                'python': platform.python_version(),
                'platform': platform.platform(),
                'device': torch.cuda.get_device_name(device)
                if device.type == 'cuda'
                else str(device),
                'processes': get_world_size(),
                'threads': torch.get_num_threads(),
            },
            config_text=runner.cfg.pretty_text,
        )

    def as_dict(self, complete: bool = True) -> dict[str, Any]:
        """The report as the JSON file holds it."""
        content = asdict(self)
        boxes = content.pop('benign_boxes')
        content['benign'] = {
            'metrics': self.benign,
            **({'boxes': boxes} if boxes else {}),
        }
        content['attacks'] = [attack.as_dict() for attack in self.attacks]
        config_text = content.pop('config_text')
        return {**content, 'complete': complete, 'config_text': config_text}

    def write(self, path: str | os.PathLike, complete: bool) -> None:
        """Writes ``path`` and its Markdown twin, on the main process.

        Args:
            path: the JSON file; the twin has the extension ``.md``.
            complete: whether all attacks have been run.
        """
        if not is_main_process():
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite(self.as_dict(complete)), indent=2, default=str)
        write_atomically(target, text + '\n')
        write_atomically(target.with_suffix('.md'), self.markdown(complete))

    def table(self) -> str:
        """The figures as a Markdown table, one row per attack."""
        shown = [k for k in self.benign if k.split('/')[-1] in _SHOWN] or list(
            self.benign
        )
        names = [key.split('/')[-1] for key in shown]
        rows = [
            ['attack', 'norm', 'eps', 'steps', 'objective', *names],
            ['---'] * 5 + ['---:'] * len(names),
            ['none (benign)', '', '', '', '', *_numbers(self.benign, shown)],
        ]
        for attack in self.attacks:
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

    def markdown(self, complete: bool = True) -> str:
        """The Markdown twin."""
        lines = ['# Robustness report', '']
        if not complete:
            lines += ['**Not complete: attacks are still to be run.**', '']
        lines += [
            self.table(),
            '',
            'eps in pixel units of 0-255, on the network input.',
        ]
        passes = [('none (benign)', self.benign_boxes)]
        passes += [(attack.name, attack.boxes) for attack in self.attacks]
        lines += boxes_section(passes, self.worst_case)
        warnings = [f'- {text}' for text in self.checks] + [
            f'- {attack.name}: {text}'
            for attack in self.attacks
            for text in attack.checks
        ]
        lines += ['', '## Checks', '', *(warnings or ['No warnings.'])]
        lines += ['', '## Cost', '', '| attack | forwards | backwards | seconds |']
        lines += ['| --- | ---: | ---: | ---: |']
        lines += [
            f'| {a.name} | {a.forwards} | {a.backwards} | {a.seconds:.1f} |'
            for a in self.attacks
        ]
        facts = {
            'config': self.config,
            'checkpoint': self.checkpoint,
            'sha256': self.checkpoint_sha256,
            'seed': self.seed,
            'dataset': self._dataset(),
            'versions': ', '.join(f'{k} {v}' for k, v in self.versions.items()),
            **self.environment,
        }
        facts['command'] = shlex.join(self.environment.get('command', ()))
        lines += ['', '## How to repeat it', '']
        lines += [f'- {key}: {value}' for key, value in facts.items()]
        return '\n'.join(lines) + '\n'

    def _dataset(self) -> str:
        # A folder of classes has no annotation file.
        keys = ('ann_file', 'data_root', 'type')
        name = next((self.dataset[k] for k in keys if self.dataset.get(k)), '')
        return f'{name}, {self.dataset["num_images"]} images'


def file_sha256(path: str | None) -> str | None:
    """Hash of a local file, or None for a URL or nothing."""
    if not path or not os.path.isfile(path):
        return None
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for chunk in iter(lambda: file.read(1 << 20), b''):
            digest.update(chunk)
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the stack, whichever distribution brings it."""
    found = {}
    for names in _PACKAGES:
        for name in names:
            try:
                found[name] = version(name)
                break
            except PackageNotFoundError:
                continue
    return found


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a text file so that it is there whole or not at all."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f'.{target.name}.')
    try:
        with os.fdopen(handle, 'w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _numbers(metrics: dict[str, Any], keys: list[str]) -> list[str]:
    return [
        f'{metrics[key]:.3f}' if isinstance(metrics.get(key), (int, float)) else '-'
        for key in keys
    ]


def finite(value: Any) -> Any:
    """Makes NaN and infinity null, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if hasattr(value, 'item') and getattr(value, 'ndim', 1) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
