"""The Markdown twin of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .content import sections
from .document import part_markdown

if TYPE_CHECKING:
    from .robustness import RobustnessReport

NOT_COMPLETE = 'Not complete: attacks are still to be run.'


def markdown(report: RobustnessReport, complete: bool = True) -> str:
    """The Markdown twin."""
    blocks = ['# Robustness report']
    if not complete:
        blocks.append(f'**{NOT_COMPLETE}**')
    blocks += map(part_markdown, [report.figures(), *report.about()])
    blocks += [section.markdown() for section in sections(report)]
    return '\n\n'.join(blocks) + '\n'
