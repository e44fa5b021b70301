"""Writes tables and whole reports as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .document import Document, Part, Table

NOT_COMPLETE = 'Not complete: attacks are still to be run.'


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], align: str = 'lr'
) -> str:
    """Formats a table in Markdown, without a newline at its end.

    Args:
        head: titles of the columns.
        rows: as many cells each; bars and newlines in them are escaped.
        align: ``'l'`` or ``'r'`` for each column; the last letter holds for the
            columns that are left, so that ``'lr'`` is text and then numbers.
    """
    sides = align.ljust(len(head), align[-1])[: len(head)]
    rule = ['---:' if side == 'r' else '---' for side in sides]
    lines = [list(map(_cell, head)), rule]
    lines += [list(map(_cell, row)) for row in rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def part_markdown(part: Part) -> str:
    """Formats a paragraph, a list or a table."""
    if isinstance(part, Table):
        return markdown_table(part.head, part.rows, 'l' * part.texts + 'r')
    if isinstance(part, list):
        return '\n'.join(f'- {text}' for text in part)
    return part


def markdown(document: Document) -> str:
    """Formats a report."""
    blocks = [f'# {document.title}']
    if not document.complete:
        blocks.append(f'**{NOT_COMPLETE}**')
    blocks += [document.summary] if document.summary else []
    blocks += map(part_markdown, document.parts)
    for section in document.sections:
        if not section.page_only:
            blocks += [f'## {section.title}', *map(part_markdown, section.parts)]
    return '\n\n'.join(blocks) + '\n'


def _cell(content: object) -> str:
    return str(content).replace('|', r'\|').replace('\n', ' ')
