"""The report of an AutoAttack evaluation: the robustness report with its own table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..report import (
    AttackResult,
    Bar,
    Figure,
    Part,
    RobustnessReport,
    Section,
    Table,
    number,
)
from .members import Ball

# What the flags of the package's own checks mean for the figures.
_MEANING = {
    'randomised': 'the model answers the same image differently each time, which the '
    "attacks do not expect: use version 'rand'",
    'probabilities': 'the outputs look like probabilities and not like logits, which '
    'hides gradients: take the softmax out of the head',
    'zero_gradient': 'the DLR loss had no gradient at some images: gradients may be '
    'masked, and the robust accuracy too high',
    'dynamic': 'the model computes gradients or losses while it predicts (a dynamic '
    'defence), which AutoAttack was not made for',
    'square': 'Square broke images that the gradients did not, a sign of masked '
    'gradients: the robust accuracy may be too high',
}

# What numbers of a shard's images mean, in the order of the report's checks.
_COUNTED = {
    'no_gradient': '{} correctly classified images have no gradient at all: gradients '
    'are masked, and the robust accuracy may be too high',
    'detached': 'the logits do not depend on the images in a way that can be '
    'differentiated, so attacks by gradients cannot work',
    'invalid': '{} adversarial images lie outside the ball or the range of pixels and '
    'do not count',
    'disagreements': '{} adversarial images are predicted otherwise than the package '
    'said; what counts is the prediction made here',
}


@dataclass
class AutoAttackReport(RobustnessReport):
    """The robustness report with the paper's table: resolutions by threats.

    Attributes:
        version: version of AutoAttack.
        shard_size: images that were attacked together.
        resolutions: what was done to the images at each resolution.
        rows: per resolution the accuracies in percent, with ``clean``, ``threats`` (by
            the ball's name) and ``all_norms``, the share of images that no threat
            breaks.
        per_image: folder with the results of each image.
    """

    version: str = ''
    shard_size: int = 0
    resolutions: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    per_image: str = ''
    # Per resolution, which images no threat has broken so far.
    _withstood: dict[str, list[bool]] = field(default_factory=dict)

    def add(
        self,
        resolution: str,
        threat: str,
        records: Sequence[dict[str, Any]],
        several: bool,
    ) -> None:
        """Puts a threat's figure into the table and checks the benign one.

        Args:
            resolution: name of the resolution.
            threat: name of the ball.
            records: of all shards.
            several: whether benign metrics are named by their resolution.
        """
        images = [image for record in records for image in record['images']]
        total = len(images)
        clean = 100 * sum(image['clean_correct'] for image in images) / total
        robust = [bool(image['robust']) for image in images]
        row = next((r for r in self.rows if r['resolution'] == resolution), None)
        if row is None:
            row = {'resolution': resolution, 'num_images': total, 'clean': clean}
            row.update(threats={}, all_norms=None)
            self.rows.append(row)
            self._withstood[resolution] = [True] * total
            prefix = f'{resolution}/' if several else ''
            stated = self.benign.get(f'{prefix}accuracy/top1')
            if stated is not None and abs(stated - clean) > 1e-3 + 100 / total:
                self.checks.append(
                    f'at {resolution} the evaluator gives {stated:.2f} % clean '
                    f'accuracy and the attacked network {clean:.2f} %: do they see the '
                    'same?'
                )
        pairs = zip(self._withstood[resolution], robust, strict=True)
        self._withstood[resolution] = [before and now for before, now in pairs]
        row['threats'][threat] = 100 * sum(robust) / total
        row['all_norms'] = 100 * sum(self._withstood[resolution]) / total

    def as_dict(self, complete: bool = True) -> dict[str, Any]:
        """Returns the report as the JSON file holds it."""
        content = super().as_dict(complete)
        content.pop('_withstood')
        return content

    def figures(self) -> Table:
        """Tabulates accuracy in percent, one row per resolution."""
        several = len(self.labels) > 1
        head = ['resolution', 'images', 'clean', *self.labels.values()]
        head += ['all norms'] if several else []
        lines = []
        for row in self.rows:
            numbers = [row['clean'], *(row['threats'].get(k) for k in self.labels)]
            numbers += [row.get('all_norms')] if several else []
            cells = [number(value, 2) for value in numbers]
            lines.append([row['resolution'], str(row['num_images']), *cells])
        return Table(head, lines)

    def about(self) -> list[Part]:
        """Explains the table of figures."""
        return [
            'eps in pixel units of 0-255, in brackets for [0, 1] images.\n'
            f'Top-1 accuracy in percent. AutoAttack, version {self.version}, in '
            f'batches of {self.shard_size}; an image counts as broken by what this '
            'program predicts on its adversarial image. Per image: '
            f'`{self.per_image}`.',
            list(self.resolutions),
        ]

    def bars(self) -> list[Bar]:
        """Lists the accuracies that the page draws."""
        several = len(self.labels) > 1
        found = []
        for row in self.rows:
            at = f'{row["resolution"]}: ' if len(self.rows) > 1 else ''
            found.append(Bar(f'{at}clean', Figure(row['clean']), 'benign'))
            for name, label in self.labels.items():
                if name in row['threats']:
                    figure = Figure(row['threats'][name])
                    found.append(Bar(f'{at}{label}', figure))
            if several and row['all_norms'] is not None:
                figure = Figure(row['all_norms'])
                found.append(Bar(f'{at}all norms', figure, 'worst'))
        return found

    def more(self) -> list[Section]:
        """Tabulates what each member left over."""
        rows = [
            [
                attack.name,
                name,
                ', '.join(f'{k} {v}' for k, v in member['settings'].items()),
                str(member['attacked']),
                f'{member["accuracy_after"]:.2f}',
                f'{member["seconds"]:.1f}',
            ]
            for attack in self.attacks
            for name, member in attack.settings['members'].items()
        ]
        head = ['attack', 'member', 'settings', 'attacked', 'accuracy after']
        table = Table([*head, 'seconds'], rows, texts=3)
        return [Section('members', 'After each member', [table])]


def summarise(
    name: str,
    ball: Ball,
    records: Sequence[dict[str, Any]],
    members: dict[str, dict[str, Any]],
    notes: Sequence[str],
) -> AttackResult:
    """Adds up the shards of one threat at one resolution.

    Args:
        name: of the result.
        ball: the threat.
        records: of all shards.
        members: settings of each member.
        notes: sentences that belong to the checks.
    """
    images = [image for record in records for image in record['images']]
    total = len(images)
    remaining = sum(image['clean_correct'] for image in images)
    table = {}
    for member, settings in members.items():
        parts = [r['members'][member] for r in records if member in r['members']]
        remaining -= sum(part['broken'] for part in parts)
        table[member] = {
            'settings': settings,
            'attacked': sum(part['attacked'] for part in parts),
            'broken': sum(part['broken'] for part in parts),
            'accuracy_after': 100 * remaining / total,
            'seconds': round(sum(part['seconds'] for part in parts), 2),
        }
    robust = sum(image['robust'] for image in images)
    settings = {'norm': ball.norm, 'eps': ball.eps, 'eps_unit': ball.unit_eps}
    result = AttackResult(name, {**settings, 'members': table})
    result.metrics = {'top1': 100 * robust / total, 'robust': robust, 'images': total}
    result.forwards = sum(record['forwards'] for record in records)
    result.backwards = sum(record['backwards'] for record in records)
    result.seconds = sum(record['seconds'] for record in records)
    result.checks = [*notes, *_checks(records)]
    return result


def _checks(records: Sequence[dict[str, Any]]) -> list[str]:
    flags = Counter(flag for record in records for flag in record['flags'])
    found = [
        f'{_MEANING.get(flag, flag)} ({times} of {len(records)} shards)'
        for flag, times in sorted(flags.items())
    ]
    for key, text in _COUNTED.items():
        count = sum(record[key] for record in records)
        if count:
            found.append(text.format(count))
    return found
