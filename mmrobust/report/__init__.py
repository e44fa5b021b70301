"""The robustness report: JSON, and the same for people as Markdown and as a page."""

from ..compat.stack import package_versions
from .corruptions import summaries
from .document import (
    Bar,
    Document,
    Figure,
    Lines,
    Part,
    Section,
    Table,
    is_number,
    number,
)
from .html import page
from .markdown import markdown, markdown_table
from .results import (
    AttackResult,
    Headline,
    agreed_settings,
    figure_of,
    find_curves,
    has_own_figure,
    worst_figure,
)
from .robustness import RobustnessReport, device_name

__all__ = [
    'AttackResult',
    'Bar',
    'Document',
    'Figure',
    'Headline',
    'Lines',
    'Part',
    'RobustnessReport',
    'Section',
    'Table',
    'agreed_settings',
    'device_name',
    'figure_of',
    'find_curves',
    'has_own_figure',
    'is_number',
    'markdown',
    'markdown_table',
    'number',
    'package_versions',
    'page',
    'summaries',
    'worst_figure',
]
