"""The robustness report: JSON, and the same for people."""

from .files import file_sha256, finite, write_atomically
from .result import AttackResult
from .robustness import RobustnessReport, package_versions

__all__ = [
    'AttackResult',
    'RobustnessReport',
    'file_sha256',
    'finite',
    'package_versions',
    'write_atomically',
]
