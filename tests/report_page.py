"""Compares the keys of reports with docs/report.md, which explains them all."""

import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'report.md'


@cache
def described():
    """By section, each key with the section of what it holds, or None."""
    sections = re.split(r'^## ', PAGE.read_text(), flags=re.M)[1:]
    found = {}
    for section in sections:
        title, _, text = section.partition('\n')
        keys = found[title.replace(' ', '-')] = {}
        for names, kind in re.findall(r'^\| (`.*?`) \| (.*?) \|', text, re.M):
            inner = re.search(r'\(#([\w-]+)\)', kind)
            for name in re.findall(r'`([^`]+)`', names):
                keys[name] = inner[1] if inner else None
    return found


def undescribed(value, section='report', path=''):
    """The keys of a report, as paths, that the page does not name."""
    keys, missing = described()[section], []
    for key, inner in value.items():
        own = f'{path}.{key}'.lstrip('.')
        if key not in keys and '*' not in keys:
            missing.append(f'{own} (a row in the section "{section}")')
            continue
        kind = keys.get(key, keys.get('*'))
        for each in inner if isinstance(inner, list) else [inner]:
            if kind and isinstance(each, dict):
                missing += undescribed(each, kind, own)
    return missing


def check(report):
    """Fails with what has to be explained on the page."""
    missing = undescribed(report)
    assert not missing, (
        f'explain in docs/report.md: {", ".join(dict.fromkeys(missing))}'
    )
