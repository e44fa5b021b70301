"""Draws the cases."""

from __future__ import annotations

from random import Random

import fuzz_commands
import fuzz_configs
import fuzz_data
from fuzz_case import Case

# Without --fuzz-cases.
CASES = 560

# Of a hundred cases.
SHARES = {'commands': 36, 'configs': 34, 'data': 18, 'checkpoints': 12}
DRAW = {
    'commands': fuzz_commands.draw,
    'configs': fuzz_configs.draw,
    'data': fuzz_data.draw,
    'checkpoints': fuzz_data.draw_checkpoint,
}


def draw_cases(count: int, seed: int) -> list[Case]:
    """Cases of all kinds; each depends on seed, kind and number alone."""
    return [
        draw(Random(f'{seed} {kind} {number}'), number)
        for kind, draw in DRAW.items()
        for number in range(count * SHARES[kind] // 100)
    ]
