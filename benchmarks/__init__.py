"""What adversarial training and attacks cost beside what they cannot do without.

``benchmarks/cost.py`` is the command line; docs/speed.md says what is measured.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.attack import attack_sections
from benchmarks.memory import memory_sections
from benchmarks.subject import Subject
from benchmarks.table import Table, as_markdown
from benchmarks.timing import Clock
from benchmarks.training import inner_sections, training_sections

# A section measures the subject with a clock, so many times, and gives its tables.
Section = Callable[[Subject, Clock, int], list[Table]]

SECTIONS: dict[str, Section] = {
    'training': training_sections,
    'inner': inner_sections,
    'attack': attack_sections,
    'memory': memory_sections,
}

__all__ = ['SECTIONS', 'Clock', 'Section', 'Subject', 'Table', 'as_markdown']
