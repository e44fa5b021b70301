"""Tables and plots of the study, from the records of its runs alone.

    python experiments/evidence/tables.py work_dirs/evidence/cifar10-medium
    python experiments/evidence/tables.py experiments/evidence/results/cifar10-medium

The first form gathers the records below a work dir, the second reads ``records.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from grid import SLOWER
from mmrobust import cli
from mmrobust.errors import ConfigError
from mmrobust.report import markdown_table
from mmrobust.utils.files import write_atomically

MAP = 'coco/bbox_mAP'
WHITE_BOX = ('total', 'cls', 'reg', 'cwa')
Record = dict[str, Any]


class Store:
    """The records of a study, by title and seed.

    Args:
        records: as ``runs.py`` writes them.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.all = sorted(records, key=lambda record: record['name'])
        self.by_title: dict[str, dict[int, Record]] = {}
        for record in self.all:
            title = record['name'].rsplit('/', 1)[0]
            self.by_title.setdefault(title, {})[record['seed']] = record

    @classmethod
    def read(cls, folder: Path) -> Store:
        """Reads ``records.json``, or the records of the runs below a work dir.

        Raises:
            ConfigError: if there are none.
        """
        gathered = folder / 'records.json'
        if (folder / 'runs').is_dir():
            paths = sorted((folder / 'runs').rglob('record.json'))
            return cls(json.loads(path.read_text()) for path in paths)
        if gathered.is_file():
            return cls(json.loads(gathered.read_text()))
        raise ConfigError(
            f'{str(folder)!r} has neither runs nor records.json: give the work dir of '
            'run.py, or a folder of results.'
        )

    def values(self, title: str, figure: Callable[[Record], float]) -> list[float]:
        """A figure of all seeds that have it."""
        seeds = sorted(self.by_title.get(title, {}).items())
        values = [figure(record) for _, record in seeds]
        return [value for value in values if not math.isnan(value)]


# --- figures of a record ---


def percent(metrics: dict[str, float], key: str = MAP) -> float:
    """A metric of COCO in percent; there is none where nothing was detected."""
    return 100 * max(float(metrics.get(key, 0.0)), 0.0)


def benign(record: Record) -> float:
    """Box mAP in percent."""
    return percent(record['benign'])


def under(name: str) -> Callable[[Record], float]:
    """Box mAP in percent under an attack."""

    def figure(record: Record) -> float:
        (found,) = (each for each in record['attacks'] if each['name'] == name)
        return percent(found['metrics'])

    return figure


def worst(record: Record) -> float:
    """The lowest box mAP under the white-box attacks of one objective."""
    return min(under(name)(record) for name in WHITE_BOX)


def metric(key: str) -> Callable[[Record], float]:
    """A metric of a classifier's or a transfer's record."""
    return lambda record: float(record['metrics'][key])


def segm(name: str | None) -> Callable[[Record], float]:
    """Mask mAP in percent, benign or under an attack."""

    def figure(record: Record) -> float:
        metrics = record['benign']
        if name is not None:
            (found,) = (each for each in record['attacks'] if each['name'] == name)
            metrics = found['metrics']
        return percent(metrics, 'coco/segm_mAP')

    return figure


def minutes(record: Record) -> float:
    """Minutes of the training; nan if it was interrupted."""
    seconds = record['train_seconds']
    return math.nan if seconds is None else float(seconds) / 60


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation (n - 1); says so when there are not three."""
    if not values:
        return ''
    text = f'{statistics.fmean(values):.{digits}f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.{digits}f}'
    return text if len(values) >= 3 else f'{text} (n = {len(values)})'


# --- tables ---

Column = tuple[str, Callable[[Record], float]]
COLUMNS: list[Column] = [
    ('benign', benign),
    *((name, under(name)) for name in WHITE_BOX),
    ('lowest', worst),
]
# Rows of the tables of detectors: label and title.
ROWS: dict[str, list[tuple[str, str]]] = {
    '1': [
        ('standard training, standard backbone', 'faster-rcnn-standard-standard'),
        ('FreeAT, random backbone', 'faster-rcnn-random-free'),
        ('FreeAT, random backbone, equal budget', 'faster-rcnn-random-free-{equal}'),
        ('FreeAT, standard backbone', 'faster-rcnn-standard-free'),
        ('FreeAT, standard backbone, its rate x 1', 'faster-rcnn-standard-free-bb1'),
        ('FreeAT, robust backbone', 'faster-rcnn-robust-free'),
        ('FreeAT, robust backbone, long', 'faster-rcnn-robust-long-free'),
    ],
    '2': [
        ('AdamW 0.002, backbone x 0.1', 'faster-rcnn-robust-free'),
        ('AdamW 0.002, backbone x 1', 'faster-rcnn-robust-free-bb1'),
        ('long, AdamW 0.002, backbone x 0.1', 'faster-rcnn-robust-long-free'),
        ('long, AdamW 0.002, backbone x 1', 'faster-rcnn-robust-long-free-bb1'),
        ('SGD 0.01, backbone x 0.1', 'faster-rcnn-robust-free-sgd0.01'),
    ],
    '3': [
        ('FreeAT, m = 4', 'faster-rcnn-robust-free'),
        ('PGD-AT, 2 steps', 'faster-rcnn-robust-pgd'),
        ('FreeAT, m = 4, twice the passes', 'faster-rcnn-robust-free-{double}'),
        ('PGD-AT, 2 steps, twice the passes', 'faster-rcnn-robust-pgd-{double}'),
    ],
    '4': [
        (f'{head}, {weights} backbone', f'{key}-{weights}-free{passes}')
        for weights in ('robust', 'standard')
        for head, key, passes in (
            ('Faster R-CNN', 'faster-rcnn', ''),
            ('FCOS', 'fcos', '-{slower}'),
            ('DN-DETR', 'dn-detr', '-{slower}'),
        )
    ],
    '6': [
        ('ConvNeXt, patch stem', 'faster-rcnn-convnext-free'),
        ('ConvNeXt, ConvStem', 'faster-rcnn-convstem-free'),
    ],
    '9': [
        ('ResNet-18', 'faster-rcnn-robust-free'),
        ('Swin', 'faster-rcnn-swin-free'),
    ],
}
MASKS = [
    (f'Mask R-CNN, {weights} backbone', f'mask-rcnn-{weights}-free')
    for weights in ('robust', 'standard')
]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    return markdown_table(head, rows) + '\n'


def rows_of(records: Store, claim: str) -> list[tuple[str, str]]:
    """Labels and titles of a claim, with the numbers of passes of this study."""
    passes = {
        title.split('/')[1]: next(iter(found.values()))['settings']['passes']
        for title, found in records.by_title.items()
        if title.startswith('detector/')
    }
    usual = passes.get('faster-rcnn-robust-free', 0)
    equal = [
        passes[title]
        for title in passes
        if title.startswith('faster-rcnn-random-free-')
    ]
    names = {
        'equal': equal[0] if equal else 0,
        'double': 2 * usual,
        'slower': SLOWER * usual,
    }
    rows = [
        (label, 'detector/' + title.format(**names)) for label, title in ROWS[claim]
    ]
    found = [row for row in rows if row[1] in records.by_title]
    return found if own(claim, found, ROWS) else []


def own(
    claim: str,
    found: Sequence[tuple[str, str]],
    rows: dict[str, list[tuple[str, str]]],
) -> bool:
    """Whether rows were found that a claim does not share with the first.

    What other claims have trained is a reference; alone it says nothing.
    """
    references = {title.split('/')[-1] for _, title in rows['1']}
    return claim == '1' or any(
        title.split('/')[-1] not in references for _, title in found
    )


def detectors(
    records: Store,
    rows: Sequence[tuple[str, str]],
    columns: Sequence[Column] = COLUMNS,
    extra: Callable[[str], list[tuple[str, str]]] = lambda title: [],
) -> str:
    """A table of detectors.

    Args:
        records: of the study.
        rows: label and title.
        columns: name and figure.
        extra: further cells of a title, name and text.
    """
    head = ['', *(name for name, _ in columns)]
    lines = []
    for label, title in rows:
        if title in records.by_title:
            cells = [spread(records.values(title, figure)) for _, figure in columns]
            more = extra(title)
            head = ['', *(name for name, _ in columns), *(name for name, _ in more)]
            lines.append([label, *cells, *(text for _, text in more)])
    return table(head, lines) if lines else '(not run)\n'


def evaluated(
    records: Store, what: str, names: Sequence[str]
) -> Callable[[str], list[tuple[str, str]]]:
    """Cells of a further evaluation, for :func:`detectors`."""

    def cells(title: str) -> list[tuple[str, str]]:
        other = f'attacked/{title.split("/")[1]}-{what}'
        return [(name, spread(records.values(other, under(name)))) for name in names]

    return cells


def cost(
    records: Store, names: Sequence[str] = ('updates', 'passes', 'minutes')
) -> Callable[[str], list[tuple[str, str]]]:
    """Cells of what a training took, for :func:`detectors`."""

    def cells(title: str) -> list[tuple[str, str]]:
        settings = next(iter(records.by_title[title].values()))['settings']
        found = {
            'updates': str(settings['updates']),
            'passes': str(settings['passes']),
            'minutes': spread(records.values(title, minutes)),
        }
        return [(name, found[name]) for name in names]

    return cells


def joined(
    *parts: Callable[[str], list[tuple[str, str]]],
) -> Callable[[str], list[tuple[str, str]]]:
    """Cells of several kinds, for :func:`detectors`."""
    return lambda title: [cell for part in parts for cell in part(title)]


def matrix_cells(records: Store) -> dict[str, dict[str, list[float]]]:
    """Box mAP in percent of all seeds, by source of the images and tested detector."""
    found = records.by_title.get('matrix/pgd', {})
    entries = [record['matrix'] for _, record in sorted(found.items())]
    return {
        source: {
            target: [100 * each['matrix'][source][target] for each in entries]
            for target in entries[0]['targets']
        }
        for source in (['clean', *entries[0]['sources']] if entries else ())
    }


def matrix(records: Store) -> str:
    """Box mAP of every detector on the images made with every detector."""
    cells = matrix_cells(records)
    if not cells:
        return '(not run)\n'
    rows = [
        [source, *(spread(values) for values in by_target.values())]
        for source, by_target in cells.items()
    ]
    return table(['images of \\ tested on', *cells['clean']], rows)


def autoattacked(records: Store, claim: str) -> str:
    """A table of a claim's classifiers: clean and under AutoAttack's APGD."""
    rows = [
        (label, name)
        for label, name in CLASSIFIERS[claim]
        if any(title.startswith(f'autoattack/{name}-l') for title in records.by_title)
    ]
    if not own(claim, rows, CLASSIFIERS):
        return '(not run)\n'
    # Column to the key of its figure, and the norm of the run that has it.
    columns: dict[str, tuple[str, str]] = {}
    for norm in ('linf', 'l2', 'l1'):
        for _, name in rows:
            for record in records.by_title.get(
                f'autoattack/{name}-{norm}', {}
            ).values():
                for key in record['metrics']:
                    column = shown(key, record['settings']['sides'][0])
                    columns.setdefault(column, (key, norm))
    order = sorted(columns, key=lambda column: column.split(', ')[1])
    lines = []
    for label, name in rows:
        cells = [
            spread(records.values(f'autoattack/{name}-{norm}', metric(key)))
            for key, norm in (columns[column] for column in order)
        ]
        training = f'classifier/{name}'
        # The attacked pictures are too few to tell clean accuracies apart.
        of_all = spread(records.values(training, metric('accuracy/top1')))
        took = spread(records.values(training, minutes))
        lines.append([label, of_all, *cells, took])
    head = ['', 'clean, test set', *order, 'minutes']
    return table(head, lines) if lines else '(not run)\n'


def shown(key: str, side: int) -> str:
    """How a table calls a metric: ``autoattack/40/linf-4`` is ``linf, 40 px``.

    Args:
        key: of the metric; the side is missing where there is one only.
        side: the least one of the run, pixels.
    """
    parts = key.split('/')
    found = next((part for part in parts if part.isdigit()), side)
    name = parts[-1].split('-')[0] if parts[0] == 'autoattack' else 'clean'
    return f'{name}, {found} px'


CLASSIFIERS = {
    '1': [
        ('standard', 'resnet18-eps0'),
        ('robust', 'resnet18-eps4'),
        ('robust, long', 'resnet18-eps4-3.33'),
    ],
    '6': [
        ('ConvNeXt, patch stem', 'convnext-eps4'),
        ('ConvNeXt, ConvStem', 'convnext-convstem-eps4'),
    ],
    '7': [
        ('random start, light', 'resnet18-eps4'),
        ('random start, heavy', 'resnet18-eps4-heavy'),
        ('standard start, light', 'resnet18-eps4-from-standard-0.5'),
        ('standard start, heavy', 'resnet18-eps4-heavy-from-standard-0.5'),
    ],
}


def sweep(records: Store) -> str:
    """Accuracy on the other classes by the eps of the pre-training."""
    rows = []
    for mode in ('fixed', 'full'):
        for side in (32, 8):
            title = f'transfer/last-half-{side}px'
            if title not in records.by_title:
                continue
            record = next(iter(records.by_title[title].values()))
            radii = [key.split('/')[1] for key in record['metrics'] if mode in key]
            cells = [
                spread(records.values(title, metric(f'{mode}/{eps}'))) for eps in radii
            ]
            rows.append([f'{mode}, {side} pixels', *cells])
    if not rows:
        return '(not run)\n'
    return table(['', *(f'eps {eps}' for eps in radii)], rows)


def sections(records: Store) -> list[tuple[str, str]]:
    """All tables, each with its heading."""
    found = [
        (
            'Claim 1: the classifiers that backbones come from',
            autoattacked(records, '1'),
        )
    ]
    for claim, heading in (
        ('1', 'Claim 1: the backbone'),
        ('2', 'Claim 2: learning rate of the backbone, and optimizer'),
        ('3', 'Claim 3: FreeAT and PGD-AT'),
        ('4', 'Claim 4: heads'),
    ):
        extra = {
            '1': joined(
                evaluated(records, 'ensemble', ['ensemble']), cost(records, ['minutes'])
            ),
            '3': cost(records),
            '4': cost(records),
        }.get(claim, lambda title: [])
        rows = rows_of(records, claim)
        found.append((heading, detectors(records, rows, COLUMNS, extra)))
    found.append(('Claim 5: transfer between detectors', matrix(records)))
    found.append(('Claim 6: the stem, classifiers', autoattacked(records, '6')))
    stems = evaluated(records, 'l2-l1', ['l2', 'l1'])
    found.append(
        (
            'Claim 6: the stem, detectors',
            detectors(records, rows_of(records, '6'), COLUMNS, stems),
        )
    )
    found.append(('Claim 7: start and augmentation', autoattacked(records, '7')))
    found.append(('Claim 8: transfer of robust classifiers', sweep(records)))
    found.append(
        ('Claim 9: another backbone', detectors(records, rows_of(records, '9')))
    )
    black_box = [
        (label, title)
        for label, title in rows_of(records, '1')
        if f'attacked/{title.split("/")[1]}-square' in records.by_title
    ]
    square = evaluated(records, 'square', ['square'])
    found.append(
        (
            'Claim 9: a black-box attack',
            detectors(records, black_box, COLUMNS, square),
        )
    )
    masks: list[Column] = [
        ('benign', segm(None)),
        *((name, segm(name)) for name in WHITE_BOX),
    ]
    rows = [(label, f'detector/{title}') for label, title in MASKS]
    found.append(('Claim 9: instance segmentation, boxes', detectors(records, rows)))
    found.append(
        ('Claim 9: instance segmentation, masks', detectors(records, rows, masks))
    )
    return found


def write_results(records: Store, out: Path) -> None:
    """Writes ``records.json``, ``evidence.md`` and the plots."""
    from plots import write_plots

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(records.all, indent=1, sort_keys=True) + '\n'
    write_atomically(out / 'records.json', text)
    parts = ['# Tables', 'mean ± standard deviation over seeds; mAP in percent.']
    for heading, body in sections(records):
        parts += [f'## {heading}', body.rstrip()]
    write_atomically(out / 'evidence.md', '\n\n'.join(parts) + '\n')
    write_plots(records, out)


def main() -> None:
    """Reads records, writes tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='work dir, or folder of results')
    parser.add_argument('--out', type=Path, help='where to write (default: there)')
    args = parser.parse_args()
    write_results(Store.read(args.folder), args.out or args.folder)


if __name__ == '__main__':
    cli.run(main)
