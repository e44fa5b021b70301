"""The figures of a transfer matrix: table, checks, files."""

from __future__ import annotations

import json
import platform
import shlex
import time
from dataclasses import dataclass, field
from typing import Any

from ...report import package_versions
from ...utils.files import finite, write_atomically
from .plan import Plan
from .plot import draw

# Figures that differ by less are the same, computed in another order.
_SAME = 1e-3


@dataclass
class Entry:
    """One source's images, shown to one target.

    Attributes:
        source: name of the detector that they were made with.
        target: name of the detector that was tested.
        value: the figure on the attacked images.
        control: the same on the unattacked images, resized in the same way.
        metrics: everything the target's evaluator gives.
    """

    source: str
    target: str
    value: float
    control: float
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def fall(self) -> float:
        """What the perturbation cost, without what resizing cost."""
        return self.control - self.value

    @property
    def white_box(self) -> bool:
        """Whether the images were made for this very target."""
        return self.source == self.target


@dataclass
class Matrix:
    """All results of a matrix, as far as they are known.

    Attributes:
        plan: the matrix.
        metric: key of the figure.
        clean: the figure on the untouched images, by target.
        entries: one per source and target.
        own: result of the attack on each source, as in its robustness report.
        notes: sentences for the checks.
    """

    plan: Plan
    metric: str
    clean: dict[str, float] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every target has been tested."""
        return len(self.clean) == len(self.plan.targets)

    def entry(self, source: str, target: str) -> Entry | None:
        """The entry of a source and a target, if it is known."""
        for each in self.entries:
            if (each.source, each.target) == (source, target):
                return each
        return None

    def checks(self) -> list[str]:
        """What makes the figures doubtful."""
        found = list(self.notes)
        for name, own in self.own.items():
            found += [f'attack on {name}: {text}' for text in own.get('checks', ())]
            direct, again = own['metrics'].get(self.metric), self.entry(name, name)
            if direct is not None and again and abs(direct - again.value) > _SAME:
                found.append(
                    f'{name}: its own images gave {direct:.3f} in the attack and give '
                    f'{again.value:.3f} as pictures that go through its pipeline'
                )
        for entry in self.entries:
            white = self.entry(entry.target, entry.target)
            if white and entry.fall - white.fall > _SAME and not entry.white_box:
                found.append(
                    f'{entry.target} loses more to the images made for {entry.source} '
                    f'({entry.fall:.3f}) than to those made for itself '
                    f'({white.fall:.3f}): the attack on {entry.target} is too weak, '
                    'or its gradients are masked'
                )
        return found

    def table(self) -> str:
        """Rows are sources, columns targets; the fall from the control in brackets."""
        targets = [each.name for each in self.plan.targets if each.name in self.clean]
        rows = [
            ['images made for', *targets],
            ['---', *['---:'] * len(targets)],
            ['none (clean)', *(f'{self.clean[t]:.3f}' for t in targets)],
        ]
        for sources in self._same_control():
            cells = [self.entry(sources[0], target) for target in targets]
            rows.append(
                [
                    f'none, at the size of {", ".join(sources)}',
                    *('-' if cell is None else f'{cell.control:.3f}' for cell in cells),
                ]
            )
        for source in self.plan.sources:
            row = [source.name]
            for target in targets:
                cell = self.entry(source.name, target)
                text = '-' if cell is None else f'{cell.value:.3f} ({-cell.fall:+.3f})'
                row.append(f'**{text}**' if cell and cell.white_box else text)
            rows.append(row)
        return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)

    def markdown(self) -> str:
        """The content of ``transfer_matrix.md``."""
        plan = self.plan
        settings = ', '.join(
            f'{key} {value}'
            for key, value in plan.attack_settings.items()
            if value is not None and key not in ('type', 'name')
        )
        lines = ['# Transfer matrix', '']
        if not self.complete:
            lines += ['**Not complete: targets are still to be tested.**', '']
        lines += [
            self.table(),
            '',
            f'{self.metric}; attack {plan.attack} ({settings}) on the network input of '
            'the source, sizes in pixel units of 0-255. In brackets the change from '
            'the clean images at the same size, in bold what was made for the target.',
            '',
            '![matrix](transfer_matrix.png)',
            '',
            '## Checks',
            '',
            *([f'- {text}' for text in self.checks()] or ['No warnings.']),
            '',
            '## How to repeat it',
            '',
            f'- command: {shlex.join(plan.command)}',
            f'- seed: {plan.seed}',
            f'- images: {plan.num_images or "all"}',
        ]
        lines += [
            f'- {each.name}: {each.config}, {each.checkpoint}, sha256 {each.sha256}'
            for each in plan.detectors
        ]
        versions = ', '.join(f'{k} {v}' for k, v in package_versions().items())
        return '\n'.join([*lines, f'- versions: {versions}', ''])

    def as_dict(self) -> dict[str, Any]:
        """The content of ``transfer_matrix.json``."""
        plan = self.plan
        sources = [each.name for each in plan.sources]
        targets = [each.name for each in plan.targets]
        return {
            'metric': self.metric,
            'complete': self.complete,
            'attack': plan.attack_settings,
            'seed': plan.seed,
            'num_images': plan.num_images,
            'detectors': [
                {
                    'name': each.name,
                    'config': each.config,
                    'checkpoint': each.checkpoint,
                    'sha256': each.sha256,
                    'source': each.name in sources,
                    'target': each.name in targets,
                }
                for each in plan.detectors
            ],
            'clean': self.clean,
            'entries': [
                {
                    'source': each.source,
                    'target': each.target,
                    'white_box': each.white_box,
                    'value': each.value,
                    'control': each.control,
                    'fall': each.fall,
                    'metrics': each.metrics,
                }
                for each in self.entries
            ],
            'attacks': self.own,
            'checks': self.checks(),
            'versions': package_versions(),
            'environment': {
                'command': plan.command,
                'date': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
                'python': platform.python_version(),
                'platform': platform.platform(),
            },
        }

    def write(self) -> None:
        """Writes JSON, Markdown and picture, each whole or not at all."""
        folder = self.plan.work_dir
        text = json.dumps(finite(self.as_dict()), indent=2, default=str)
        write_atomically(folder / 'transfer_matrix.json', text + '\n')
        draw(
            [each.name for each in self.plan.sources],
            [each.name for each in self.plan.targets],
            {(e.source, e.target): (e.value, e.control) for e in self.entries},
            self.metric,
            folder / 'transfer_matrix.png',
        )
        write_atomically(folder / 'transfer_matrix.md', self.markdown())

    def _same_control(self) -> list[list[str]]:
        """Names of sources whose images have the same sizes."""
        groups: dict[str, list[str]] = {}
        for each in self.plan.sources:
            groups.setdefault(each.resizing(), []).append(each.name)
        return list(groups.values())
