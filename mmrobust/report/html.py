"""The page of the report: one file that needs nothing else.

No script, no font, no picture is fetched: what is drawn is in the file, so that it can
be mailed, kept beside the checkpoint and printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .boxes import Passes, classes_section
from .charts import bar_chart, error_chart
from .content import all_passes, checks_section, dataset_text, sections
from .curves import find_curves
from .document import Section
from .elements import Raw, join, part, tag, void
from .elements import table as table_element
from .figures import Bar, Headline
from .markdown import NOT_COMPLETE
from .pictures import embedded
from .style import STYLE

if TYPE_CHECKING:
    from .robustness import RobustnessReport

# A longer table is folded up at first.
_LONG = 30


def page(
    report: RobustnessReport,
    complete: bool = True,
    gallery: Sequence[tuple[str, Path]] = (),
) -> str:
    """The whole page.

    Args:
        report: what it shows.
        complete: whether all attacks have been run.
        gallery: pictures with their titles; those that cannot be read are named.
    """
    passes = all_passes(report)
    by_key = {section.key: section for section in sections(report)}
    repeat = by_key.pop('repeat')
    by_key.pop('checks')
    bodies = [_head(report), *([] if complete else [_note(NOT_COMPLETE)])]
    bodies += [_tiles(report), _checks(report), _figures(report)]
    for key, section in by_key.items():
        extra: list[Raw] = []
        if key == 'boxes':
            extra.append(error_chart(passes))
        if key == 'curves':
            extra.append(_curves(report))
        bodies.append(_section(section, *extra))
        if key == 'sizes':
            bodies += _classes(passes)
    if 'sizes' not in by_key:
        bodies += _classes(passes)
    bodies += [_gallery(gallery)] if gallery else []
    bodies.append(_section(repeat))
    if report.config_text:
        config = tag('pre', tag('code', report.config_text))
        bodies.append(tag('details', join(tag('summary', 'Full config'), config)))
    head = join(
        void('meta', charset='utf-8'),
        void('meta', name='viewport', content='width=device-width, initial-scale=1'),
        tag('title', f'Robustness of {_model(report)}'),
        tag('style', Raw(STYLE)),
    )
    body = Raw('\n'.join(bodies))
    return (
        '<!doctype html>\n<html lang="en">\n'
        f'{tag("head", head)}\n{tag("body", tag("main", body))}\n</html>\n'
    )


def _model(report: RobustnessReport) -> str:
    return Path(report.config).stem if report.config else 'a model'


def _head(report: RobustnessReport) -> Raw:
    sha256 = report.checkpoint_sha256
    facts = {
        'checkpoint': report.checkpoint or 'none',
        'sha256': sha256 or 'unknown',
        'dataset': dataset_text(report.dataset),
        'seed': str(report.seed),
        'date': str(report.environment.get('date', 'unknown')),
    }
    entries = [join(tag('dt', key), tag('dd', text)) for key, text in facts.items()]
    return join(
        tag('h1', f'Robustness of {_model(report)}'),
        tag('dl', join(*entries), class_='facts'),
    )


def _tiles(report: RobustnessReport) -> Raw:
    """The figures that people look for first."""
    bars, name = report.bars(), Headline.of(report).name
    digits = _digits(bars)
    tiles = []
    benign = [bar for bar in bars if bar.kind == 'benign']
    attacks = [bar for bar in bars if bar.kind == 'attack']
    worst = [bar for bar in bars if bar.kind == 'worst']
    if len(benign) == 1:
        tiles.append((_value(benign[0], digits), f'{name}, no attack'))
    if attacks:
        lowest = min(attacks, key=lambda bar: bar.figure.value)
        tiles.append((_value(lowest, digits), f'{name} under {lowest.label}, lowest'))
    if len(worst) == 1:
        tiles.append((_value(worst[0], digits), f'{name}, {worst[0].label}'))
    warnings = len(_warnings(report))
    tiles.append((str(warnings), 'warning' if warnings == 1 else 'warnings'))
    boxes = [
        tag('div', join(tag('b', value), tag('small', text)), class_='tile')
        for value, text in tiles
    ]
    return tag('div', join(*boxes), class_='tiles')


def _warnings(report: RobustnessReport) -> list[str]:
    (warnings,) = checks_section(report).parts
    return warnings if isinstance(warnings, list) else []


def _checks(report: RobustnessReport) -> Raw:
    section = checks_section(report)
    content = join(tag('h2', section.title), *map(part, section.parts))
    kind = 'note warning' if _warnings(report) else 'note'
    return tag('section', content, class_=kind, id='checks')


def _figures(report: RobustnessReport) -> Raw:
    bars, name = report.bars(), Headline.of(report).name
    parts = []
    if bars:
        title = f'{name}, with 95 % bootstrap intervals over images'
        if all(bar.figure.low is None for bar in bars):
            title = name
        parts.append(bar_chart(bars, _digits(bars), title))
    parts += [table_element(report.figures()), *map(part, report.about())]
    return tag('section', join(tag('h2', 'Figures'), *parts), id='figures')


def _digits(bars: Sequence[Bar]) -> int:
    """Shares get three decimals, percentages two."""
    return 2 if any(bar.figure.value > 1 for bar in bars) else 3


def _value(bar: Bar, digits: int) -> str:
    return f'{bar.figure.value:.{digits}f}'


def _curves(report: RobustnessReport) -> Raw:
    # Loading matplotlib takes longer than a report without curves.
    from .plots import curve_pictures

    headline = Headline.of(report)
    benign = headline.read(report.benign, report.benign_boxes)
    drawn = curve_pictures(find_curves(report.attacks), headline, benign)
    figures = []
    for title, svg in drawn:
        figures.append(tag('figure', join(tag('figcaption', title), Raw(svg))))
    return tag('div', join(*figures), class_='pictures')


def _classes(passes: Passes) -> list[Raw]:
    section = classes_section(passes)
    if not section:
        return []
    introduction, table = map(part, section.parts)
    rows = str(table).count('<tr>') - 1
    if rows > _LONG:
        table = tag('details', join(tag('summary', f'All {rows} classes'), table))
    content = join(tag('h2', section.title), introduction, table)
    return [tag('section', content, id=section.key)]


def _section(section: Section, *extra: Raw) -> Raw:
    """A section; what only the page shows stands after its introduction."""
    parts = [part(each) for each in section.parts]
    content = join(tag('h2', section.title), *extra, *parts)
    return tag('section', content, id=section.key)


def _gallery(gallery: Sequence[tuple[str, Path]]) -> Raw:
    figures = []
    for title, path in gallery:
        source = embedded(path)
        caption = tag('figcaption', title)
        if source is None:
            text = f'The picture {Path(path).name} cannot be read.'
            figures.append(tag('figure', join(caption, tag('p', text))))
            continue
        picture = void('img', alt=title, src=source)
        figures.append(tag('figure', join(caption, picture)))
    content = join(
        tag('h2', 'Gallery'),
        tag('p', 'Clean, attacked, and the difference, amplified.'),
        tag('div', join(*figures), class_='gallery'),
    )
    return tag('section', content, id='gallery')


def _note(text: str) -> Raw:
    return tag('div', tag('p', tag('strong', text)), class_='note warning')
