"""Where the time of an evaluation goes: what is counted, and how it is laid out."""

from pkgutil import resolve_name

import pytest
from benchmarks.command import _WATCHED, STAGES, Stopwatch, rows_of


def test_what_is_inside_something_is_not_part_of_it():
    times = iter([3, 4, 6, 9, 10, 15])
    watch = Stopwatch(1.0, lambda: next(times))

    class Attack:
        def step(self):
            return 'moved'

    watch.watch(Attack, 'step', 'passes')
    with watch.on('attack'):  # from 3 to 9
        assert Attack().step() == 'moved'  # from 4 to 6
    with pytest.raises(ZeroDivisionError), watch.on('attack'):  # from 10 to 15
        raise ZeroDivisionError
    # Since the process was started at 1, and between the two attacks.
    assert watch.seconds == {'start': 2 + 1, 'attack': 1 + 3 + 5, 'passes': 2}


def test_a_straight_line_has_the_same_in_each_row():
    rows = [
        dict(what=what, number=n, seconds=9 + 3 * n + more, passes=2 * n, once=4)
        for what, n, more in (('a', 1, 0), ('a', 2, 0), ('a', 4, 0), ('b', 8, 0))
    ]
    table = rows_of([{**row, 'mebibytes': 100 + row['number']} for row in rows])
    assert [row[-2:] for row in table] == [
        ['', ''],
        ['1000.0', '1024'],
        ['1000.0', '1024'],
        ['', ''],
    ]
    assert table[1][:7] == ['a', '2', '15.0', '4.0', '4.0', '7.0', '102']


def test_what_is_watched_exists():
    for place, names, stage in _WATCHED:
        assert all(callable(getattr(resolve_name(place), name)) for name in names)
        assert stage in STAGES
