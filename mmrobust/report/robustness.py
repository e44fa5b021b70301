"""The robustness report: what an evaluation has to tell, and its three files.

The JSON file holds everything; a Markdown twin and a page say the same to people.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..compat.stack import package_versions
from ..utils.files import file_sha256, finite, write_atomically
from ..utils.models import device_of
from . import corruptions, sections
from .document import Bar, Document, Part, Section, Table
from .html import page
from .markdown import markdown, part_markdown
from .results import ANALYSES, AttackResult, Headline
from .verdict import verdict

_SPACES = {
    'input': 'on the network input',
    'original': "on the pixels of the dataset's pictures, before they are resized",
}


@dataclass
class RobustnessReport:
    """Everything needed to read the figures and to repeat the run."""

    config: str | None  # path of the config file
    checkpoint: str | None  # path or address
    checkpoint_sha256: str | None  # of a local file
    seed: int  # of the attacks
    versions: dict[str, str]
    # type, ann_file, data_root, num_images, annotations_sha256, padding
    dataset: dict[str, Any]
    checks: list[str] = field(default_factory=list)  # what makes all figures doubtful
    environment: dict[str, Any] = field(default_factory=dict)
    config_text: str = ''
    benign: dict[str, Any] = field(default_factory=dict)  # metrics without attack
    attacks: list[AttackResult] = field(default_factory=list)
    benign_boxes: dict[str, Any] | None = None  # as AttackResult.boxes, without attack
    benign_masks: dict[str, Any] | None = None  # the same of masks
    benign_panoptic: dict[str, Any] | None = None  # as AttackResult.panoptic
    benign_evaluator: dict[str, Any] | None = None  # as AttackResult.evaluator
    benign_load: dict[str, Any] | None = None  # as AttackResult.load, without attack
    # The lowest figure that a choice of passes, image by image, was found to give.
    worst_case: dict[str, Any] | None = None
    # The same by what does not compare passes, of ANALYSES.
    other_worst_cases: dict[str, Any] = field(default_factory=dict)
    judged_by: str = 'boxes'  # see AttackResult
    # Means over corruptions, see :func:`.corruptions.summaries`.
    corruptions: list[dict[str, Any]] = field(default_factory=list)
    # The benign pass on other datasets, see mmrobust.evaluation.shift.
    shifts: list[dict[str, Any]] = field(default_factory=list)
    # Where perturbations live: 'input' of the network, or 'original' pictures' pixels.
    space: str = 'input'
    # The settings of the adversary in the model's training, if there was one.
    adversary: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, runner: Runner, dataset: Any, seed: int, notes: list[str]
    ) -> RobustnessReport:
        """Collects what is known before the first pass."""
        checkpoint = getattr(runner, '_load_from', None)
        device = device_of(runner.model)
        return cls(
            config=runner.cfg.filename,
            checkpoint=checkpoint,
            checkpoint_sha256=file_sha256(checkpoint),
            seed=seed,
            versions=package_versions(),
            dataset={
                'type': type(dataset).__name__,
                **{k: getattr(dataset, k, None) for k in ('ann_file', 'data_root')},
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

    def as_dict(self, complete: bool = True) -> dict[str, Any]:
        """Returns the report as the JSON file holds it."""
        content = asdict(self)
        content['benign'] = {'metrics': self.benign}
        for name in (*ANALYSES, 'evaluator', 'load'):
            if found := content.pop(f'benign_{name}'):
                content['benign'][name] = found
        for name, found in content.pop('other_worst_cases').items():
            content[f'worst_case_{name}'] = found
        content['attacks'] = [attack.as_dict() for attack in self.attacks]
        config_text = content.pop('config_text')
        return {**content, 'complete': complete, 'config_text': config_text}

    def table(self) -> str:
        """Returns the figures as a Markdown table."""
        return part_markdown(self.figures())

    def markdown(self, complete: bool = True) -> str:
        """Returns the Markdown twin."""
        return markdown(self.document(complete))

    def html(
        self, complete: bool = True, gallery: Sequence[tuple[str, Path]] = ()
    ) -> str:
        """Returns the page; see :meth:`write`."""
        return page(self.document(complete), gallery)

    def document(self, complete: bool = True) -> Document:
        """Returns the report for people, in tables and sentences."""
        headline = self.headline()
        boxes, masks, panoptic = (self._passes(name) for name in ANALYSES)
        warnings = list(self.checks)
        warnings += [f'{a.name}: {text}' for a in self.attacks for text in a.checks]
        summary = verdict(
            *(headline, self.attacks, self.worst_case),
            *(len(warnings), self.corruptions),
        )
        found = [
            sections.curves_section(headline, self.attacks),
            *sections.members_sections(self.attacks),
            *corruptions.corruption_sections(headline, self.corruptions, self.attacks),
            sections.shift_section(headline, self.shifts, self.judged_by),
            sections.boxes_section(boxes, self._worst_of('boxes')),
            sections.calibration_section(boxes),
            sections.sizes_section(boxes),
            sections.classes_section(boxes),
            sections.boxes_section(masks, self._worst_of('masks'), 'masks'),
            sections.calibration_section(masks, 'masks'),
            sections.sizes_section(masks, 'masks'),
            sections.classes_section(masks, 'masks'),
            sections.panoptic_section(panoptic, self._worst_of('panoptic')),
            sections.classes_section(panoptic, 'panoptic'),
            sections.patches_section(self.attacks),
            sections.pictures_section(headline, self.attacks),
            sections.load_section(self.benign_load, self.attacks),
            *self.more(),
            Section('checks', 'Checks', [warnings or 'No warnings.']),
            sections.gradients_section(self.attacks),
            sections.cost_section(self.attacks),
            self._how_to_repeat(),
        ]
        name = Path(self.config).stem if self.config else 'a model'
        return Document(
            title=f'Robustness of {name}',
            facts={
                'checkpoint': self.checkpoint or 'none',
                'sha256': self.checkpoint_sha256 or 'unknown',
                'dataset': _dataset_text(self.dataset),
                'seed': str(self.seed),
                'date': str(self.environment.get('date', 'unknown')),
            },
            figure=headline.name,
            bars=self.bars(),
            parts=[self.figures(), *self.about()],
            sections=[section for section in found if section],
            warnings=warnings,
            config_text=self.config_text,
            complete=complete,
            summary=summary,
        )

    def _how_to_repeat(self) -> Section:
        facts = {
            'config': self.config,
            'checkpoint': self.checkpoint,
            'sha256': self.checkpoint_sha256,
            'seed': self.seed,
            'dataset': _dataset_text(self.dataset),
            'versions': ', '.join(f'{k} {v}' for k, v in self.versions.items()),
            **self.environment,
        }
        facts['command'] = shlex.join(self.environment.get('command', ()))
        texts = [f'{key}: {value}' for key, value in facts.items()]
        return Section('repeat', 'How to repeat it', [texts])

    def headline(self) -> Headline:
        """Returns the figure by which the passes are compared."""
        return Headline(self.benign, self.judged, self.judged_by)

    @property
    def judged(self) -> dict[str, Any] | None:
        """Returns the analysis without attack by which passes are compared."""
        return self._benign_of(self.judged_by)

    def enter_worst_case(self, name: str, found: dict[str, Any] | None) -> None:
        """Puts in the worst case of an analysis, of ``'boxes'`` say."""
        if name == self.judged_by:
            self.worst_case = found
        else:
            self.other_worst_cases[name] = found

    def _worst_of(self, name: str) -> dict[str, Any] | None:
        others = self.other_worst_cases
        return self.worst_case if name == self.judged_by else others.get(name)

    def _benign_of(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = getattr(self, f'benign_{name}')
        return found

    def _passes(self, name: str) -> sections.Passes:
        attacks = [(each.name, getattr(each, name)) for each in self.attacks]
        return [(sections.BENIGN_LABEL, self._benign_of(name)), *attacks]

    # What other kinds of reports say in their own way.

    def figures(self) -> Table:
        """Returns the figures, one row per attack."""
        return sections.figures_table(self.benign, self.attacks)

    def about(self) -> list[Part]:
        """Returns what there is to say about the table of figures."""
        space = _SPACES.get(self.space, self.space)
        about: list[Part] = [
            *self._means(),
            f'eps in pixel units of 0-255, {space}.',
        ]
        if self.adversary:
            settings = {k: v for k, v in self.adversary.items() if v is not None}
            kind = settings.pop('type', 'an adversary')
            texts = ', '.join(f'{key} {value}' for key, value in settings.items())
            about.append(f'The model was trained with {kind}: {texts}.')
        if padding := self.dataset.get('padding'):
            about.append(
                f'{padding["images"]} of {self.dataset["num_images"]} images have '
                f'padding from the pipeline ({padding["share"]:.0%} of their pixels), '
                'which no attack changes.'
            )
        if self.judged_by == 'evaluator' and self.worst_case:
            worst = sections.worst_sentence(self.worst_case, self.headline().name)
            about.append(worst)
        if self.judged_by == 'panoptic':
            about.append('Passes are compared, and ensembles choose, by PQ.')
        elif self.judged_by != 'evaluator' and (
            self.benign_masks or self.benign_panoptic
        ):
            kind = 'masks' if self.judged_by == 'masks' else 'boxes'
            about.append(
                f'Passes are compared, and ensembles choose, by the mAP of {kind}.'
            )
        return about + sections.files(self.attacks)

    def _means(self) -> list[Part]:
        """Says which mAP is meant where."""
        coco = "COCO's AP at IoU 0.5 to 0.95, mean over classes"
        known = self.benign_boxes or self.benign_masks
        if not known or self.judged_by == 'panoptic':
            return []
        name = self.headline().name
        if self.judged_by != 'evaluator':
            return [f'{name} is {coco}.']
        known = self.benign_evaluator or {}
        means = known.get('means', "the evaluator's own figure, which has no interval")
        text = f'{name} is {means}. COCO mAP, in the sections below, is {coco}.'
        if self.benign_evaluator and any(each.members for each in self.attacks):
            text += (
                f' Ensembles chose by COCO mAP on these images, which intervals of '
                f'their {name} do not count in.'
            )
        return [text]

    def bars(self) -> list[Bar]:
        """Returns the figures that the page draws."""
        headline = self.headline()
        more = corruptions.mean_figures(headline, self.corruptions)
        more += sections.shift_figures(headline, self.shifts, self.judged_by)
        return sections.figure_bars(headline, self.attacks, self.worst_case, more)

    def more(self) -> list[Section]:
        """Returns sections that only this kind of report has."""
        return []


def _dataset_text(dataset: Mapping[str, Any]) -> str:
    """Names a dataset by what it has: a folder of classes has no annotation file."""
    keys = ('ann_file', 'data_root', 'type')
    name = next((dataset[key] for key in keys if dataset.get(key)), '')
    return f'{name}, {dataset["num_images"]} images'


def device_name(device: torch.device) -> str:
    """Returns the device in words: a GPU by its name."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return str(device)
