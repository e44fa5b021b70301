"""The exception that reports a user's mistake, and notes on everybody else's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 240

# Errors of other people's code that the work done here brings out, and what helps.
_KNOWN = {
    r'in-?place operation': 'losses are differentiated by the image, so that what a '
    'part that learns nothing gives, a frozen teacher say, must not be written into: '
    'run that part under torch.no_grad()',
}


class ConfigError(ValueError):
    """A setting, file or dataset that cannot work as given.

    The message is one sentence for the user: what is wrong and what to do. The
    command-line tools print it without a traceback and exit with status 2.
    """


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Says of an error from inside what was going on: which pass, image or stage.

    The error keeps its type and traceback. The command-line tools print the notes, the
    outermost first, before the traceback; Python 3.11 and newer do so after it.

    Args:
        what: a phrase like ``'attacking image 17 with pgd'``.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, ConfigError):
            # add_note() of Python 3.11, in 3.10 too.
            notes = list(getattr(error, '__notes__', []))
            help = (text for key, text in _KNOWN.items() if re.search(key, str(error)))
            note = f'while {what}' + ''.join(f' ({text})' for text in help if not notes)
            error.__notes__ = [*notes, note]  # type: ignore[attr-defined]
        raise


def short(text: str) -> str:
    """Puts a text on one line, without addresses in memory, and cuts a long one."""
    text = re.sub(r'\x1b\[[0-9;]*m', '', text)  # colours
    text = re.sub(r' (object )?at 0x[0-9a-f]+', '', ' '.join(text.split()))
    text = text if len(text) <= _LONGEST else text[:_LONGEST].rstrip() + ' ...'
    return text.rstrip('.!?: ')
