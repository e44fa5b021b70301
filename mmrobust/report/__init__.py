"""The robustness report: JSON, and the same for people as Markdown and as a page."""

from .document import Bar, Figure, Part, Section, Table, number
from .markdown import markdown_table
from .results import AttackResult, agreed_settings, figure_of
from .robustness import RobustnessReport, device_name, package_versions

__all__ = [
    'AttackResult',
    'Bar',
    'Figure',
    'Part',
    'RobustnessReport',
    'Section',
    'Table',
    'agreed_settings',
    'device_name',
    'figure_of',
    'markdown_table',
    'number',
    'package_versions',
]
