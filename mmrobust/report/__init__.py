"""The robustness report: JSON, and the same for people as Markdown and as a page."""

from .curves import Curve, find_curves
from .document import Part, Section, Table, markdown_table, number
from .figures import Bar, Figure
from .result import AttackResult
from .robustness import RobustnessReport, device_name, package_versions

__all__ = [
    'AttackResult',
    'Bar',
    'Curve',
    'Figure',
    'Part',
    'RobustnessReport',
    'Section',
    'Table',
    'device_name',
    'find_curves',
    'markdown_table',
    'number',
    'package_versions',
]
