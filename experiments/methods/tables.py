"""Tables of the training methods, from records alone.

python experiments/methods/tables.py records.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mmrobust.corruptions import BENCHMARK
from mmrobust.report import markdown_table

METRICS = ('bbox_mAP', 'bbox_mAP_50')


def tables(rows: list[dict[str, Any]], metric: str = 'bbox_mAP') -> str:
    """One line per method: mean and standard deviation over seeds, in percent."""
    names = [name for name in rows[0]['metrics'] if name not in BENCHMARK]
    columns = ['training', 'seeds', 'updates', *names, 'mPC']
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row['method'], []).append(row)
    cells = []
    for method, group in found.items():
        values = {
            name: [100 * row['metrics'][name][metric] for row in group]
            for name in names
        }
        values['mPC'] = [
            100 * mean(row['metrics'][name][metric] for name in BENCHMARK)
            for row in group
        ]
        cells.append(
            [method, len(group), group[0]['updates']]
            + [spread(each) for each in values.values()]
        )
    return markdown_table(columns, cells, 'lrr') + '\n'


def study_table(rows: list[dict[str, Any]]) -> str:
    """One line per training of photographs.py's other studies, likewise."""
    passes, lines = list(rows[0]['metrics']), []
    chosen = any(row['tried'] for row in rows)
    for name in dict.fromkeys(row['name'] for row in rows):
        group = [row for row in rows if row['name'] == name]
        tried = group[0]['tried'].items()
        cells = [
            spread([100 * row['metrics'][column][metric] for row in group])
            for metric in METRICS
            for column in passes
        ]
        if chosen:
            words = (f'{float(rate):g}: {100 * mAP:.1f}' for rate, mAP in tried)
            cells.append('; '.join(words))
        lines.append([name, len(group), f'{group[0]["rate"]:g}', *cells])
    columns = [f'{column}{at}' for at in ('', ', IoU .5') for column in passes]
    columns += ['pgd by rate, validation'] * chosen
    return markdown_table(['training', 'seeds', 'rate', *columns], lines, 'lrr') + '\n'


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    if len(values) == 1:
        return f'{values[0]:.1f}'
    return f'{mean(values):.1f} ± {stdev(values):.1f}'


def of_file(path: Path) -> str:
    """The tables of a file of records."""
    records = json.loads(path.read_text())
    if isinstance(records, dict):
        return study_table(list(records.values()))
    return '\n'.join(f'{metric}\n\n{tables(records, metric)}' for metric in METRICS)


if __name__ == '__main__':
    for given in sys.argv[1:]:
        print(of_file(Path(given)))
