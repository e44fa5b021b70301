"""Writes a report as a page: one file that needs nothing else.

No script, no font, no picture is fetched: what is shown is in the file, so that it can
be mailed, kept beside the checkpoint and printed.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from .document import Bar, Document, Lines, Part, Section, Shares, Table
from .markdown import NOT_COMPLETE

# A longer table of what only the page has is folded up at first.
_LONG = 30

# Wider pictures are larger than any screen shows them, and a page of larger files
# cannot be mailed.
_MAX_WIDTH = 1800
_MAX_BYTES = 600_000

_VOID = ('img', 'meta')


def page(
    document: Document,
    gallery: Sequence[tuple[str, Path]] = (),
    sortable: bool = False,
) -> str:
    """Returns the whole page.

    Args:
        document: what it shows.
        gallery: pictures with their titles; those that cannot be read are named.
        sortable: let tables be sorted by a click on a column, by a script of its own.
    """
    by_key = {section.key: section for section in document.sections}
    checks, repeat = by_key.pop('checks'), by_key.pop('repeat')
    facts = [
        each for k, v in document.facts.items() for each in (tag('dt', k), tag('dd', v))
    ]
    bodies = [tag('h1', document.title) + tag('dl', *facts, class_='facts')]
    if not document.complete:
        note = tag('p', tag('strong', NOT_COMPLETE))
        bodies.append(tag('div', note, class_='note warning'))
    kind = 'note warning' if document.warnings else 'note'
    bodies.append(_tiles(document))
    bodies += [_part(document.summary)] if document.summary else []
    bodies += [_section(checks, class_=kind), _figures(document)]
    bodies += map(_section, by_key.values())
    bodies += [_gallery(gallery)] if gallery else []
    bodies.append(_section(repeat))
    if document.config_text:
        config = tag('pre', tag('code', document.config_text))
        bodies.append(tag('details', tag('summary', 'Full config'), config))
    if sortable:
        script = Path(__file__).with_name('sort.js').read_text(encoding='utf-8')
        bodies.append(tag('script', _Raw(script)))
    style = Path(__file__).with_name('style.css').read_text(encoding='utf-8')
    head = tag(
        'head',
        tag('meta', charset='utf-8'),
        tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
        tag('title', document.title),
        tag('style', _Raw('\n' + style)),
    )
    body = tag('body', tag('main', _Raw('\n'.join(bodies))))
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


# -------------------------------------------------------------------------- elements


class _Raw(str):
    """Text that is HTML already."""


def tag(name: str, /, *contents: str, **attributes: str) -> _Raw:
    """Returns an element; contents that are no elements are escaped.

    An underscore at the end of an attribute is dropped, for ``class_``.
    """
    given = ''.join(
        f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items()
    )
    inner = ''.join(c if isinstance(c, _Raw) else escape(c) for c in contents)
    return _Raw(f'<{name}{given}>{inner}' + ('' if name in _VOID else f'</{name}>'))


def _part(part: Part) -> _Raw:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, list):
        return tag('ul', *(tag('li', text) for text in part))
    text = re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', escape(part))
    return tag('p', _Raw(re.sub(r'`([^`]+)`', r'<code>\1</code>', text)))


def _table(table: Table) -> _Raw:
    """Returns a table that scrolls, by keys too, where the screen is narrow."""

    def cell(name: str, index: int, text: str) -> _Raw:
        if index >= table.texts:
            return tag(name, text, class_='number')
        if index == 0 and name == 'td':
            return tag('th', text, scope='row')
        return tag(name, text)

    def row(name: str, texts: Sequence[str]) -> _Raw:
        return tag('tr', *(cell(name, i, text) for i, text in enumerate(texts)))

    head = tag('thead', row('th', table.head))
    body = tag('tbody', *(row('td', texts) for texts in table.rows))
    return tag('div', tag('table', head, body), class_='wide', tabindex='0')


def _section(section: Section, **attributes: str) -> _Raw:
    contents = [tag('h2', section.title)]
    contents += [_shares(d) for d in section.drawings if isinstance(d, Shares)]
    pictures = [
        _picture(each, f'p{place}')
        for place, each in enumerate(section.drawings)
        if isinstance(each, Lines)
    ]
    if pictures:
        contents.append(tag('div', *pictures, class_='pictures'))
    for part in section.parts:
        content = _part(part)
        if section.page_only and isinstance(part, Table) and len(part.rows) > _LONG:
            summary = tag('summary', f'All {len(part.rows)} rows')
            content = tag('details', summary, content)
        contents.append(content)
    return tag('section', *contents, **attributes, id=section.key)


# --------------------------------------------------------------------------- figures


def _tiles(document: Document) -> _Raw:
    """Returns the figures that people look for first."""
    name, digits, tiles = document.figure, _digits(document.bars), []
    texts = {
        'benign': '{}, no attack',
        'attack': '{} under {}, lowest',
        'worst': '{}, {}',
    }
    for kind, text in texts.items():
        bars = [bar for bar in document.bars if bar.kind == kind]
        if len(bars) == 1 or (bars and kind == 'attack'):
            bar = min(bars, key=lambda bar: bar.figure.value)
            value = f'{bar.figure.value:.{digits}f}'
            tiles.append((value, text.format(name, bar.label)))
    warnings = len(document.warnings)
    tiles.append((str(warnings), 'warning' if warnings == 1 else 'warnings'))
    boxes = [[tag('b', value), tag('small', text)] for value, text in tiles]
    return tag(
        'div', *(tag('div', *box, class_='tile') for box in boxes), class_='tiles'
    )


def _figures(document: Document) -> _Raw:
    bars, parts = document.bars, list(map(_part, document.parts))
    if bars:
        title = document.figure
        if any(bar.figure.low is not None for bar in bars):
            title += ', with 95 % intervals over images'
        parts.insert(0, _bars(bars, title))
    return tag('section', tag('h2', 'Figures'), *parts, id='figures')


def _bars(bars: Sequence[Bar], title: str) -> _Raw:
    """Draws bars with their intervals; they print, scale and need no picture."""
    figures, digits = [bar.figure for bar in bars], _digits(bars)
    ends = [each.value for each in figures] + [each.high or 0.0 for each in figures]
    scale = max(ends) or 1.0
    rows = []
    for bar in bars:
        value, low, high = bar.figure.value, bar.figure.low, bar.figure.high
        track = [tag('span', class_=f'bar {bar.kind}', style=_width(value / scale))]
        if low is not None and high is not None:
            style = f'left:{100 * low / scale:.2f}%;{_width((high - low) / scale)}'
            track.append(tag('span', class_='whisker', style=style))
        text = tag('span', bar.figure.text(digits), class_='value')
        content = tag('dd', tag('span', *track, class_='track'), text)
        rows += [tag('dt', bar.label), content]
    return tag('figure', tag('figcaption', title), tag('dl', *rows, class_='bars'))


def _shares(drawing: Shares) -> _Raw:
    rows = []
    for label, counts in drawing.rows:
        total = sum(counts.values()) or 1
        parts = []
        for index, (name, count) in enumerate(counts.items()):
            width, title = _width(count / total), f'{name}: {count}'
            part = tag('span', class_=f'part part{index}', style=width, title=title)
            parts += [part] if count else []
        track = tag('span', *parts, class_='track parts')
        rows += [tag('dt', label), tag('dd', track)]
    keys: list[str] = []
    for index, name in enumerate(drawing.rows[0][1]):
        swatch = tag('span', class_=f'swatch part{index}')
        keys += [' ', tag('span', swatch, ' ', name, class_='key')]
    caption = tag('figcaption', drawing.title, *keys)
    return tag('figure', caption, tag('dl', *rows, class_='bars'))


def _picture(lines: Lines, name: str) -> _Raw:
    # Loading matplotlib takes longer than a report without curves.
    from .plots import draw

    return tag('figure', tag('figcaption', lines.title), _Raw(draw(lines, name)))


def _digits(bars: Sequence[Bar]) -> int:
    """Shares get three decimals, percentages two."""
    return 2 if any(bar.figure.value > 1 for bar in bars) else 3


def _width(share: float) -> str:
    return f'width:{100 * min(max(share, 0.0), 1.0):.2f}%'


# -------------------------------------------------------------------------- pictures


def _gallery(gallery: Sequence[tuple[str, Path]]) -> _Raw:
    figures = []
    for title, path in gallery:
        content = tag('p', f'The picture {Path(path).name} cannot be read.')
        if found := _embedded(path):
            # The size keeps the place of a picture that is not loaded yet.
            content = tag('img', alt=title, loading='lazy', **found)
        figures.append(tag('figure', tag('figcaption', title), content))
    text = tag('p', 'Clean, attacked, and the difference, amplified.')
    pictures = tag('div', *figures, class_='gallery')
    return tag('section', tag('h2', 'Gallery'), text, pictures, id='gallery')


def _embedded(path: str | Path) -> dict[str, str] | None:
    """Returns a picture as the address of itself, with its size.

    None if it cannot be read.

    Large files are scaled down and stored with loss.
    """
    try:
        content = Path(path).read_bytes()
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except (OSError, SyntaxError):  # what PIL raises for broken PNG files
        return None
    kind = str(picture.format).lower()
    if len(content) > _MAX_BYTES or picture.width > _MAX_WIDTH:
        kind = 'jpeg'
        picture.thumbnail((_MAX_WIDTH, 10 * _MAX_WIDTH))
        stream = io.BytesIO()
        picture.convert('RGB').save(stream, 'JPEG', quality=88)
        content = stream.getvalue()
    return {
        'src': f'data:image/{kind};base64,{base64.b64encode(content).decode()}',
        'width': str(picture.width),
        'height': str(picture.height),
    }
