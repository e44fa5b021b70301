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


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    if len(values) == 1:
        return f'{values[0]:.1f}'
    return f'{mean(values):.1f} ± {stdev(values):.1f}'


if __name__ == '__main__':
    for path in sys.argv[1:]:
        content = json.loads(Path(path).read_text())
        for each in METRICS:
            print(f'{each}\n\n{tables(content, each)}')
