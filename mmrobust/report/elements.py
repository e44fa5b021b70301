"""Elements of a page, escaped unless they are elements already."""

from __future__ import annotations

import re
from html import escape

from .document import Part, Table


class Raw(str):
    """Text that is HTML already."""


def html(content: str) -> Raw:
    """HTML of a text: what is no element is escaped."""
    return content if isinstance(content, Raw) else Raw(escape(content))


def join(*contents: str) -> Raw:
    """One after another."""
    return Raw(''.join(html(content) for content in contents))


def tag(name: str, content: str, /, **attributes: str) -> Raw:
    """An element; ``class_`` is the attribute ``class``."""
    return Raw(f'{void(name, **attributes)}{html(content)}</{name}>')


def void(name: str, /, **attributes: str) -> Raw:
    """An element without content."""
    given = ''.join(
        f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items()
    )
    return Raw(f'<{name}{given}>')


def rich(text: str) -> Raw:
    """A paragraph's text with ``**bold**`` and code in backticks."""
    done = re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', escape(text))
    return Raw(re.sub(r'`([^`]+)`', r'<code>\1</code>', done))


def table(content: Table) -> Raw:
    """A table that scrolls by itself where the screen is narrow."""

    def row(cells: list[Raw], line: str = 'tr') -> Raw:
        return tag(line, join(*cells))

    def cell(name: str, index: int, text: str) -> Raw:
        if index >= content.texts:
            return tag(name, text, class_='number')
        if index == 0 and name == 'td':
            return tag('th', text, scope='row')
        return tag(name, text)

    head = row([cell('th', i, text) for i, text in enumerate(content.head)])
    rows = [
        row([cell('td', i, text) for i, text in enumerate(cells)])
        for cells in content.rows
    ]
    inner = join(tag('thead', head), tag('tbody', join(*rows)))
    return tag('div', tag('table', inner), class_='wide')


def part(content: Part) -> Raw:
    """A paragraph, a list or a table."""
    if isinstance(content, Table):
        return table(content)
    if isinstance(content, list):
        return tag('ul', join(*(tag('li', text) for text in content)))
    return tag('p', rich(content))
