"""The robustness report: one JSON file, and a Markdown twin and a page for people."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..utils.files import file_sha256, finite, write_atomically
from .content import figures_table, unit_sentence
from .document import Part, Section, Table
from .figures import Bar, bars
from .html import page
from .markdown import markdown
from .result import AttackResult

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
        space: where the perturbations live: ``'input'``, the network's input, or
            ``'original'``, the pixels of the dataset's pictures.
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
    space: str = 'input'

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
                'device': device_name(device),
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

    def write(
        self,
        path: str | os.PathLike,
        complete: bool,
        gallery: Sequence[tuple[str, Path]] = (),
    ) -> None:
        """Writes ``path``, its Markdown twin and its page, on the main process.

        Args:
            path: the JSON file; twin and page have the extensions ``.md`` and
                ``.html``.
            complete: whether all attacks have been run.
            gallery: pictures for the page with their titles.
        """
        if not is_main_process():
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(finite(self.as_dict(complete)), indent=2, default=str)
        write_atomically(target, text + '\n')
        write_atomically(target.with_suffix('.md'), self.markdown(complete))
        try:
            html = self.html(complete, gallery)
        except Exception:
            # Attacks of hours are still to come, and the figures are in the JSON.
            if complete:
                raise
            text = f'The page of the report failed:\n{traceback.format_exc()}'
            print_log(text, logger='current', level=logging.WARNING)
        else:
            write_atomically(target.with_suffix('.html'), html)

    def table(self) -> str:
        """The figures as a Markdown table."""
        return self.figures().markdown()

    def markdown(self, complete: bool = True) -> str:
        """The Markdown twin."""
        return markdown(self, complete)

    def html(
        self, complete: bool = True, gallery: Sequence[tuple[str, Path]] = ()
    ) -> str:
        """The page; see :meth:`write`."""
        return page(self, complete, gallery)

    # What other kinds of reports say in their own way.

    def figures(self) -> Table:
        """The figures, one row per attack."""
        return figures_table(self)

    def about(self) -> list[Part]:
        """What there is to say about the table of figures."""
        return [unit_sentence(self.space)]

    def bars(self) -> list[Bar]:
        """The figures that the page draws."""
        return bars(self)

    def more(self) -> list[Section]:
        """Sections that only this kind of report has."""
        return []


def device_name(device: torch.device) -> str:
    """The device in words: a GPU by its name."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return str(device)


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
