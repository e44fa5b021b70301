"""Runs the cells of a notebook without Jupyter, and stores what they show.

    python experiments/tutorials/notebook.py docs/tutorials/from-python.ipynb

runs a notebook where its files are, in full size, and writes its outputs into it.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(path: Path, change: Callable[[str], str] = str) -> dict[str, Any]:
    """Runs all cells in one namespace.

    Args:
        path: of the notebook.
        change: what is done to the code of each cell before it runs.

    Returns:
        The notebook with outputs: of each cell the value of its last line, if any. What
        is printed, logs above all, is not among them.
    """
    content: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    names: dict[str, Any] = {}
    cells = [each for each in content['cells'] if each['cell_type'] == 'code']
    for number, cell in enumerate(cells, 1):
        parsed = ast.parse(change(''.join(cell['source'])))
        last = parsed.body.pop() if isinstance(parsed.body[-1], ast.Expr) else None
        exec(compile(parsed, path.name, 'exec'), names)
        value = None
        if isinstance(last, ast.Expr):
            code = compile(ast.Expression(last.value), path.name, 'eval')
            value = eval(code, names)
        cell['execution_count'] = number
        cell['outputs'] = [] if value is None else [_output(value, number)]
    return content


def _output(value: Any, number: int) -> dict[str, Any]:
    data: dict[str, Any] = {'text/plain': repr(value).splitlines(keepends=True)}
    if hasattr(value, 'savefig'):
        picture = io.BytesIO()
        value.savefig(picture, format='jpeg', dpi=60)
        data['image/jpeg'] = base64.b64encode(picture.getvalue()).decode()
    elif hasattr(value, '_repr_html_'):
        data['text/html'] = value._repr_html_().splitlines(keepends=True)
    return {
        'output_type': 'execute_result',
        'execution_count': number,
        'data': data,
        'metadata': {},
    }


if __name__ == '__main__':
    notebook = Path(sys.argv[1])
    done = json.dumps(run(notebook), indent=1, ensure_ascii=False)
    notebook.write_text(done + '\n', encoding='utf-8')
