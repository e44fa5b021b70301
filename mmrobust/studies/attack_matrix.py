"""A transfer matrix: the detectors and attack that it is of, its table and checks."""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from mmengine.config import Config, ConfigDict

from ..errors import ConfigError
from ..registry import ATTACKS
from ..report import markdown_table, package_versions
from ..utils.files import file_sha256
from .study import (
    each_once,
    environment,
    markdown,
    new_figure,
    settings_of,
    versions_text,
    write_report,
)

_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')
_PAIR = re.compile(r'(.+?\.(?:py|json|ya?ml)):(.+)')
# What a config's test loop says about the detector and not about its attacks.
_KEPT = ('fp16', 'gt_frame')
_NEEDED = ('test_dataloader', 'test_evaluator', 'test_cfg')
# Sections of a config that decide about a detector's adversarial images.
_DECISIVE = ('model', 'data_preprocessor', 'test_dataloader')
# Figures that differ by less are the same, computed in another order.
_SAME = 1e-3


@dataclass
class Detector:
    """A trained detector.

    Attributes:
        name: what the table calls it.
        config: path of its config.
        checkpoint: file or URL of its weights.
        cfg: the config.
    """

    name: str
    config: str
    checkpoint: str
    cfg: Config

    def __post_init__(self) -> None:
        for key in _NEEDED:
            if self.cfg.get(key) is None:
                raise ConfigError(f'config {self.config!r} has no {key} to test with.')
        if self.cfg.get('default_scope') in ('mmpretrain', 'mmcls'):
            raise ConfigError(
                f'config {self.config!r} is of a classifier: this is for detectors.'
            )
        loop = self.cfg.test_cfg
        self._kept = {key: loop[key] for key in _KEPT if key in loop}

    @cached_property
    def sha256(self) -> str | None:
        """Hash of the checkpoint; a URL has none."""
        return file_sha256(self.checkpoint)

    def test_config(self, folder: Path, **loop: Any) -> Config:
        """Returns the config with another work dir and test loop."""
        cfg = copy.deepcopy(self.cfg)
        cfg.test_cfg = ConfigDict({**self._kept, **loop})
        cfg.work_dir, cfg.load_from, cfg.resume = str(folder), self.checkpoint, False
        return cfg

    def settings(self) -> dict[str, Any]:
        """Returns what of the detector decides about its adversarial images."""
        cfg = settings_of(self.cfg.to_dict())
        chosen = {key: cfg[key] for key in _DECISIVE if key in cfg}
        checkpoint = self.sha256 or self.checkpoint
        return {'checkpoint': checkpoint, **chosen, 'test_cfg': self._kept}

    def resizing(self) -> str:
        """Says what makes the sizes of its network's input, padding left out."""
        pipeline = self.cfg.test_dataloader.dataset.get('pipeline') or []
        kept = [t for t in pipeline if 'Resize' in str(t.get('type'))]
        return json.dumps(kept, sort_keys=True, default=str)


@dataclass
class Plan:
    """The settings of a transfer matrix.

    Attributes:
        sources: detectors whose gradients make the images.
        targets: detectors that are shown the images.
        attack: name of the attack.
        preset: its config.
        work_dir: folder of images, logs and results.
        seed: of the attack, and of the choice of images.
        num_images: evaluate on so many images; None for all.
        metric: key of the figure, by default the most usual one.
        command: how it was called, for the report.
    """

    sources: list[Detector]
    targets: list[Detector]
    attack: str
    preset: dict[str, Any]
    work_dir: Path
    seed: int = 0
    num_images: int | None = None
    metric: str | None = None
    command: list[str] = field(default_factory=list)

    @cached_property
    def attack_settings(self) -> dict[str, Any]:
        """The attack's settings, however they were written."""
        described = ATTACKS.build(self.preset).describe()
        return {**self.preset, 'name': self.attack, **described}

    @property
    def detectors(self) -> list[Detector]:
        """Sources and targets, each once."""
        names = {each.name for each in self.sources}
        return self.sources + [d for d in self.targets if d.name not in names]


def parse_detectors(items: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Reads ``NAME=CONFIG:CHECKPOINT``.

    Returns:
        Paths of config and checkpoint by name.

    Raises:
        ConfigError: for anything else, or a name given twice.
    """
    found: dict[str, tuple[str, str]] = {}
    for item in items:
        name, _, rest = item.partition('=')
        pair = _PAIR.fullmatch(rest)
        if not pair:
            raise ConfigError(
                f'{item!r} must be NAME=CONFIG:CHECKPOINT, for instance '
                'fcos=configs/fcos.py:fcos.pth.'
            )
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f'{item!r}: the name {name!r} must be of letters, digits, dots, dashes '
                'and underscores, as it is the name of a folder.'
            )
        if name in found:
            raise ConfigError(f'the name {name!r} is given to two detectors.')
        found[name] = pair[1], pair[2]
    return found


def choose(option: str, names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Reads the names that an option gives, all by default.

    Raises:
        ConfigError: for an unknown name, or one given twice.
    """
    for name in names or ():
        if name not in known:
            raise ConfigError(f'{option} {name!r} must be one of {", ".join(known)}.')
    return list(each_once(option, names or known))


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
        """Cost of the perturbation, without what resizing cost."""
        return self.control - self.value

    @property
    def white_box(self) -> bool:
        """True if the images were made for this very target."""
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
        """True once every target has been tested."""
        return len(self.clean) == len(self.plan.targets)

    def entry(self, source: str, target: str) -> Entry | None:
        """Returns the entry of a source and a target, if it is known."""
        pairs = {(each.source, each.target): each for each in self.entries}
        return pairs.get((source, target))

    def checks(self) -> list[str]:
        """Says what makes the figures doubtful."""
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
        """Writes the table: rows are sources, columns targets.

        In brackets is the change from the control.
        """
        targets = [each.name for each in self.plan.targets if each.name in self.clean]
        sizes: dict[str, list[str]] = {}  # sources whose images have the same ones
        for each in self.plan.sources:
            sizes.setdefault(each.resizing(), []).append(each.name)
        rows = [['none (clean)', *(f'{self.clean[t]:.3f}' for t in targets)]]
        for names in sizes.values():
            cells = [self.entry(names[0], target) for target in targets]
            controls = ['-' if c is None else f'{c.control:.3f}' for c in cells]
            rows.append([f'none, at the size of {", ".join(names)}', *controls])
        for source in self.plan.sources:
            row = [source.name]
            for target in targets:
                cell = self.entry(source.name, target)
                text = '-' if cell is None else f'{cell.value:.3f} ({-cell.fall:+.3f})'
                row.append(f'**{text}**' if cell and cell.white_box else text)
            rows.append(row)
        return markdown_table(['images made for', *targets], rows)

    def markdown(self) -> str:
        """Writes the content of ``transfer_matrix.md``."""
        plan = self.plan
        settings = ', '.join(
            f'{key} {value}'
            for key, value in plan.attack_settings.items()
            if value is not None and key not in ('type', 'name')
        )
        facts = [
            f'command: {shlex.join(plan.command)}',
            f'seed: {plan.seed}',
            f'images: {plan.num_images or "all"}',
            *(
                f'{each.name}: {each.config}, {each.checkpoint}, sha256 {each.sha256}'
                for each in plan.detectors
            ),
            f'versions: {versions_text()}',
        ]
        missing = '' if self.complete else 'targets are still to be tested'
        blocks = [
            self.table(),
            f'{self.metric}; attack {plan.attack} ({settings}) on the network input of '
            'the source, sizes in pixel units of 0-255. In brackets the change from '
            'the clean images at the same size, in bold what was made for the target.',
            '![matrix](transfer_matrix.png)',
        ]
        return markdown('Transfer matrix', missing, blocks, self.checks(), facts)

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of ``transfer_matrix.json``."""
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
                {**asdict(each), 'white_box': each.white_box, 'fall': each.fall}
                for each in self.entries
            ],
            'attacks': self.own,
            'checks': self.checks(),
            'versions': package_versions(),
            'environment': environment(plan.command),
        }

    def write(self) -> None:
        """Writes JSON, Markdown and picture."""
        picture = figure(self)
        folder, text = self.plan.work_dir, self.markdown()
        write_report(folder, 'transfer_matrix', self.as_dict(), text, picture)


def figure(matrix: Matrix) -> Figure:
    """Draws a heat map, dark where little is left of what the target finds unattacked.

    Entries that are not known yet stay empty.
    """
    sources = [each.name for each in matrix.plan.sources]
    targets = [each.name for each in matrix.plan.targets]
    drawn = new_figure(2.6 + 1.1 * len(targets), 1.6 + 0.8 * len(sources))
    axes = drawn.add_subplot()
    shares = [[math.nan] * len(targets) for _ in sources]
    for entry in matrix.entries:
        row, column = sources.index(entry.source), targets.index(entry.target)
        if entry.control > 0:
            shares[row][column] = min(max(entry.value / entry.control, 0.0), 1.0)
        axes.text(
            column,
            row,
            f'{entry.value:.3f}\n({entry.value - entry.control:+.3f})',
            ha='center',
            va='center',
            fontsize=9,
            fontweight='bold' if entry.white_box else 'normal',
            color='black' if shares[row][column] > 0.55 else 'white',
        )
    image = axes.imshow(shares, vmin=0, vmax=1, cmap='viridis', aspect='auto')
    axes.set_xticks(range(len(targets)), targets, rotation=20, ha='right')
    axes.set_yticks(range(len(sources)), sources)
    axes.set_xlabel('target')
    axes.set_ylabel('images made for')
    axes.set_title(f'{matrix.metric} (change from the control)', fontsize=10)
    drawn.colorbar(image, ax=axes, label='share of the control')
    return drawn
