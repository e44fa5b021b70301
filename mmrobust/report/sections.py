"""Says what the passes of an evaluation found, in sections of tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ..analysis import SCORE_THR
from .document import (
    MISSING,
    Bar,
    Figure,
    Lines,
    Part,
    Section,
    Shares,
    Table,
    is_number,
    number,
)
from .results import (
    ANALYSES,
    AttackResult,
    Curve,
    Headline,
    by_axis,
    find_curves,
    shown_metrics,
    titles,
    worst_figure,
)

BENIGN_LABEL = 'none (benign)'

# Name and analysis of each pass, the benign one first: see
# :class:`mmrobust.evaluation.box_analysis.BoxAnalysis`.
Passes: TypeAlias = Sequence[tuple[str, 'dict[str, Any] | None']]

# What became of objects, and false detections.
_OBJECTS = ('objects_found', 'objects_misclassified', 'objects_mislocalised', 'missed')
_COUNTED = (*_OBJECTS, 'hallucinated', 'duplicate')
# The fewest images of which 95 % intervals held the true mAP in at least 92 % of the
# data sets of every kind that was simulated (experiments/intervals).
_ENOUGH = 50
_ERRORS = ('oLRP', 'oLRP_loc', 'oLRP_fp', 'oLRP_fn', 'LRP', 'LaECE')
_SIZES = ('small', 'medium', 'large')
_SINGULAR = {'boxes': 'box', 'masks': 'mask'}
_FIGURES = {'masks': 'COCO mask mAP', 'panoptic': 'PQ'}
# Of attacks, in the table of classes, which nobody could read with many of them.
_MOST_COLUMNS = 8
# More lines in one picture cannot be told apart.
MOST_LINES = 6


def figures_table(benign: Mapping[str, Any], attacks: Sequence[AttackResult]) -> Table:
    """Tabulates the metrics, one row per attack."""
    shown = shown_metrics(benign)
    rows = [[BENIGN_LABEL, '', '', '', '', *(number(benign.get(k)) for k in shown)]]
    for attack in attacks:
        settings = attack.settings
        steps = _cell(settings.get('num_steps'))
        if settings.get('restarts', 1) > 1:
            steps += f' x {settings["restarts"]}'
        if settings.get('eot', 1) > 1:
            steps += f', eot {settings["eot"]}'
        eps = settings.get('eps')
        ball = [_cell(settings.get('norm')), '' if eps is None else f'{eps:g}']
        metrics = [number(attack.metrics.get(key)) for key in shown]
        objective = str(settings.get('objective') or 'none')
        if corruption := settings.get('corruption'):
            objective += f', on {corruption} {settings["severity"]}'
            if attack.settings.get('norm') is None:
                objective = f'{corruption} {settings["severity"]}'
        rows.append([attack.name, *ball, steps, objective, *metrics])
    head = ['attack', 'norm', 'eps', 'steps', 'objective']
    return Table([*head, *titles(shown)], rows, texts=5)


def files(attacks: Sequence[AttackResult]) -> list[Part]:
    """Says of attacks that show what is in a file where it comes from."""
    found: list[Part] = []
    for attack in attacks:
        told = attack.settings
        if not told.get('file'):
            continue
        text = f'{attack.name} shows {told["file"]}, sha256 {told["sha256"]}'
        if 'fitted_on' in told:
            with_ = '; '.join(told['fitted_with'])
            text += f', fitted on {told["fitted_on"]}, to {with_}'
        found.append(text + '.')
    return found


def figure_bars(
    headline: Headline,
    attacks: Sequence[AttackResult],
    worst_case: Mapping[str, Any] | None,
    more: Sequence[tuple[str, Figure | None]] = (),
) -> list[Bar]:
    """Returns the benign figure, one of each attack, and the worst case.

    Those of corruptions are among ``more``, as their mean.
    """
    worst = worst_figure(worst_case)
    shown = [attack for attack in attacks if not attack.settings.get('corruption')]
    found = [
        (BENIGN_LABEL, headline.benign, 'benign'),
        *((attack.name, headline.of(attack), 'attack') for attack in shown),
        *((label, figure, 'attack') for label, figure in more),
        ('worst case', worst, 'worst'),
    ]
    return [Bar(label, each, kind) for label, each, kind in found if each]


def curves_section(
    headline: Headline, attacks: Sequence[AttackResult]
) -> Section | None:
    """Tabulates each axis, with a column for each curve, and draws the curves."""
    groups = by_axis(find_curves(attacks))
    if not groups:
        return None
    text = f'{headline.name} of the attacks that differ in one number only.'
    drawings = [
        _lines(headline, group[start : start + MOST_LINES], attacks)
        for group in groups
        for start in range(0, len(group), MOST_LINES)
    ]
    tables = [_curves_table(headline, group, attacks) for group in groups]
    return Section('curves', 'Curves', [text, *tables], drawings)


def _curves_table(
    headline: Headline, curves: Sequence[Curve], attacks: Sequence[AttackResult]
) -> Table:
    """Tabulates curves; without an attack there is no eps and no step."""
    columns = [
        {x: _text(headline.of(attack)) for x, attack in curve.points}
        for curve in curves
    ]
    starts = [_start(headline, curve, attacks) for curve in curves]
    rows = [['0 (benign)', *map(_text, starts)]]
    for value in sorted({x for column in columns for x in column}):
        rows.append([f'{value:g}', *(column.get(value, '') for column in columns)])
    first = curves[0]
    axis = f'eps ({first.norm})' if first.axis == 'eps' else first.axis
    return Table([axis, *(curve.label for curve in curves)], rows)


def _start(
    headline: Headline, curve: Curve, attacks: Sequence[AttackResult]
) -> Figure | None:
    """Returns the figure without attack: on corrupted pictures that of these."""
    same = ('corruption', 'severity')
    on = [curve.points[0][1].settings.get(key) for key in same]
    if on[0] is None:
        return headline.benign
    for each in attacks:
        settings = each.settings
        if settings.get('norm') is None and [settings.get(k) for k in same] == on:
            return headline.of(each)
    return None


def _lines(
    headline: Headline, curves: Sequence[Curve], attacks: Sequence[AttackResult]
) -> Lines:
    axis, along_eps = curves[0].axis, curves[0].axis == 'eps'
    lines = []
    for curve in curves:
        found = [(x, headline.of(attack)) for x, attack in curve.points]
        if along_eps:
            found.insert(0, (0.0, _start(headline, curve, attacks)))
        lines.append((curve.label, [(x, each) for x, each in found if each]))
    return Lines(
        f'{headline.name} against {axis}: {"; ".join(c.label for c in curves)}',
        f'eps ({curves[0].norm}, pixel units of 0-255)' if along_eps else axis,
        headline.name,
        lines,
        level=None if along_eps else headline.benign,
        factors=not along_eps,
    )


def members_sections(attacks: Sequence[AttackResult]) -> list[Section]:
    """Tabulates the members of each ensemble."""
    found = []
    for attack in attacks:
        figure = ANALYSES.get(attack.judged_by, 'mAP')
        name = _FIGURES.get(attack.judged_by, 'COCO mAP')
        head = ['member', 'steps', 'images', 'chosen on', f'{figure} after it']
        head += ['forwards', 'backwards', 'seconds']
        text = (
            'In their order: on how many images each ran, on how many its example is '
            f'the one that counts, and the lowest {name} found so far (by a short '
            'search: the last one may find less).'
        )
        rows = []
        for each in attack.members or ():
            steps = (each.get('settings') or {}).get('num_steps', '')
            cells = [each['name'], steps, each['images'], each['chosen']]
            cells += [number(each[figure]), each['forwards'], each['backwards']]
            rows.append([*map(str, cells), number(each['seconds'], 1)])
        key, title = f'members-{attack.name}', f'Members of {attack.name}'
        found.append(_table_section(key, title, head, rows, text))
    return [section for section in found if section]


def boxes_section(
    passes: Passes, worst: Mapping[str, Any] | None, kind: str = 'boxes'
) -> Section | None:
    """Tabulates mAP with intervals and counts of errors; states the worst case.

    Args:
        passes: their analyses, of boxes or masks.
        worst: the worst case among them.
        kind: ``'boxes'`` or ``'masks'``.
    """
    analysed = [(name, boxes) for name, boxes in passes if boxes]
    if not analysed:
        return None
    thr = analysed[0][1]['errors']['score_thr']
    labels = [key.removeprefix('objects_') for key in _COUNTED]
    rows, shares = [], []
    for name, boxes in analysed:
        counts = [boxes['errors'][key] for key in _COUNTED]
        intervals = [_text(Figure.resampled(boxes.get(k))) for k in ('mAP', 'drop')]
        rows.append([name, *intervals, *map(str, counts)])
        # Without the false detections, which stand behind the objects.
        shares.append((name, dict(zip(labels[: len(_OBJECTS)], counts, strict=False))))
    text = (
        f'COCO {_SINGULAR[kind]} mAP and its fall, with 95 % intervals over images '
        f'(jackknife); objects and false detections at scores from {thr:g}.'
    )
    if analysed[0][1]['mAP'].get('resamples', _ENOUGH) < _ENOUGH:
        text += f' With fewer than {_ENOUGH} images these intervals may be too narrow.'
    parts: list[Part] = [
        text,
        Table(['attack', 'mAP', 'fall', *labels], rows),
    ]
    if worst:
        parts.append(worst_sentence(worst, 'COCO mAP'))
    drawing = Shares('What became of the objects:', shares)
    return Section(kind, kind.capitalize(), parts, [drawing])


def panoptic_section(passes: Passes, worst: Mapping[str, Any] | None) -> Section | None:
    """Tabulates panoptic quality with intervals; states the worst case."""
    rows = []
    for name, found in passes:
        if not found:
            continue
        intervals = [_text(Figure.resampled(found.get(key))) for key in ('PQ', 'drop')]
        values = [found['SQ'], found['RQ'], found['things']['PQ'], found['stuff']['PQ']]
        rows.append(
            [
                name,
                *intervals,
                *map(number, values),
                *map(str, found['segments'].values()),
            ]
        )
    if not rows:
        return None
    text = (
        'Panoptic quality (PQ) and its fall in percent, with 95 % intervals over '
        'images (jackknife); segmentation and recognition quality, PQ of things and of '
        'stuff; segments of all images, matched from an IoU of 0.5.'
    )
    head = ['attack', 'PQ', 'fall', 'SQ', 'RQ', 'things', 'stuff']
    parts: list[Part] = [text, Table([*head, 'matched', 'false', 'missed'], rows)]
    if worst:
        parts.append(worst_sentence(worst, 'PQ'))
    return Section('panoptic', 'Panoptic segmentation', parts)


def worst_sentence(worst: Mapping[str, Any], name: str) -> str:
    """Says what the worst case is, and of which passes it is made."""
    counts = worst['images'].items()
    chosen = ', '.join(f'{name} {count}' for name, count in counts if count)
    return (
        f'Worst case, the lowest {name} found by choosing a pass for every image: '
        f'**{_text(worst_figure(worst))}** ({chosen} images). It falls with every '
        'pass that takes part: compare models under the same attacks.'
    )


def sizes_section(passes: Passes, kind: str = 'boxes') -> Section | None:
    """Tabulates the mAP of small, medium and large objects; see boxes_section."""
    text = (
        'COCO mAP of objects of an area below 32 x 32 pixels, up to 96 x 96, and '
        'above, as COCO divides them.'
    )
    counts = _objects(passes).get('sizes')
    rows = [['objects', *(str(counts[size]) for size in _SIZES)]] if counts else []
    rows += [
        [name, *(number(boxes['sizes'].get(size)) for size in _SIZES)]
        for name, boxes in passes
        if boxes and boxes.get('sizes')
    ]
    if len(rows) == bool(counts):
        return None
    head = ['attack', *_SIZES]
    key, title = _named('sizes', 'By size of the objects', kind)
    return _table_section(key, title, head, rows, text)


def _objects(passes: Passes) -> dict[str, Any]:
    """Returns how many objects there are, as far as the report knows."""
    boxes = passes[0][1] or {}
    found: dict[str, Any] = boxes.get('objects') or {}
    return found


def shift_section(
    headline: Headline, shifts: Sequence[Mapping[str, Any]], judged_by: str
) -> Section | None:
    """Tabulates what is left without attack on other datasets."""
    rows = []
    figures = shift_figures(headline, shifts, judged_by)
    for shift, (_, figure) in zip(shifts, figures, strict=True):
        kind = 'masks' if judged_by == 'masks' else 'boxes'
        boxes = shift.get(kind) or {}
        calibrated = boxes.get('calibration') or {}
        before, share = headline.benign, MISSING
        if figure and before and before.value > 0:
            share = f'{figure.value / before.value:.1%}'
        errors = [number(calibrated.get(key)) for key in ('oLRP', 'LRP', 'LaECE')]
        cells = [str(shift['images']), _text(figure), share, *errors]
        rows.append([shift['name'], *cells])
    text = (
        f'{headline.name} without attack on other datasets of the same classes, and '
        'its share of that on the evaluated one; LRP and LaECE at the score thresholds '
        'of the latter.'
    )
    head = ['dataset', 'images', headline.name, 'share', 'oLRP', 'LRP', 'LaECE']
    return _table_section('shift', 'Natural shift', head, rows, text)


def shift_figures(
    headline: Headline, shifts: Sequence[Mapping[str, Any]], judged_by: str
) -> list[tuple[str, Figure | None]]:
    """Returns labels and figures of other datasets."""
    return [
        (
            f'{each["name"]} (shift)',
            headline.read(each['metrics'], each.get(judged_by)),
        )
        for each in shifts
    ]


def calibration_section(passes: Passes, kind: str = 'boxes') -> Section | None:
    """Tabulates LRP and LaECE; as above."""
    rows = [
        [name, *(number(boxes['calibration'].get(key)) for key in _ERRORS)]
        for name, boxes in passes
        if boxes and boxes.get('calibration')
    ]
    text = (
        'Errors from 0 to 1, means over classes: the optimal LRP (at the best score '
        'threshold of each class and pass) with its parts, wrong places, false and '
        'missed ones (arXiv 2011.10772, IoU from 0.5); LRP and LaECE as 2307.00934 '
        'has them (IoU from 0.1), of the detections above one threshold per class, '
        'the LRP-optimal one on the clean pictures. LaECE tells how far scores are '
        'from the IoU to be expected.'
    )
    head = ['attack', 'oLRP', 'place', 'false', 'missed', 'LRP', 'LaECE']
    key, title = _named('calibration', 'Calibration', kind)
    return _table_section(key, title, head, rows, text)


def classes_section(passes: Passes, kind: str = 'boxes') -> Section | None:
    """Tabulates the mAP of each class, those that fall most first; as above."""
    given = [(name, boxes) for name, boxes in passes if boxes and boxes.get('classes')]
    if not given:
        return None
    benign: dict[str, Any] = {}
    attacks = given
    if given[0] == passes[0]:
        benign, attacks = given[0][1]['classes'], given[1:]
    figure = ANALYSES[kind]
    lowest = sorted(attacks, key=lambda each: each[1][figure]['estimate'])
    shown = [each for each in attacks if each in lowest[:_MOST_COLUMNS]]
    counts = _objects(passes).get('classes')
    rows = []
    names = list(given[0][1]['classes'])
    there = [name for name in names if not counts or counts[name]]
    for name in there:
        values = [boxes['classes'].get(name) for _, boxes in attacks]
        known = [value for value in values if value is not None]
        before = benign.get(name)
        fall = before - min(known) if known and before is not None else -math.inf
        figures = [boxes['classes'].get(name) for _, boxes in shown]
        count = [str(counts[name])] if counts else []
        rows.append((fall, [name, *count, *map(number, [before, fall, *figures])]))
    rows.sort(key=lambda row: -row[0])  # stable: ties stay in the dataset's order
    name = 'PQ' if kind == 'panoptic' else 'COCO mAP'
    text = f'{name} of each class, those that fall most under any attack first'
    if left := len(names) - len(there):
        text += f', without the {left} that no image shows'
    if len(shown) < len(attacks):
        text += f', with the {len(shown)} lowest attacks; all are in the JSON file'
    head = ['class', *(['objects'] if counts else []), passes[0][0], 'largest fall']
    head += [name for name, _ in shown]
    parts: list[Part] = [f'{text}.', Table(head, [row for _, row in rows])]
    key, title = _named('classes', 'By class', kind)
    return Section(key, title, parts, page_only=True)


def _named(key: str, title: str, kind: str) -> tuple[str, str]:
    """Returns key and title of a section, which tell of masks if it is about them."""
    return (key, title) if kind == 'boxes' else (f'{key}-{kind}', f'{title} ({kind})')


def patches_section(attacks: Sequence[AttackResult]) -> Section | None:
    """Tabulates AP by the distance from patches, and what is detected on them."""
    groups: dict[str, list[AttackResult]] = {}
    for attack in attacks:
        if attack.patches:
            places = {**attack.settings.get('patch', {}), 'transform': None}
            groups.setdefault(str(places), []).append(attack)
    if not groups:
        return None
    parts: list[Part] = [
        'COCO mAP of objects by their distance from the nearest patch, as a multiple '
        "of the object's own side (the root of its box's area); an object up to the "
        'first distance is patched. False detections on a patch (half of their area '
        'lies on it, and no object overlaps them by an IoU of 0.5) are counted apart, '
        f'from scores of {SCORE_THR:g}, and in no mAP here.'
    ]
    for group in groups.values():
        first = group[0].patches or {}
        edges, counts = [f'{edge:g}' for edge in first['edges']], first['objects']
        bins = [f'up to {edge}' for edge in edges] + [f'beyond {edges[-1]}']
        there = [place for place, count in enumerate(counts) if count]
        head = ['pass', 'all', *(bins[place] for place in there), 'false, on a patch']
        shown = [sum(counts), *(counts[place] for place in there)]
        rows = [['objects', *map(str, shown), '']]
        passes = [(BENIGN_LABEL, first['benign'])]
        passes += [(a.name, a.patches['attack']) for a in group if a.patches]
        for name, found in passes:
            near = [found['by_distance'][place] for place in there]
            figures = map(number, (found['mAP'], *near))
            rows.append([name, *figures, str(found['on_patch'])])
        patch = group[0].settings.get('patch', {})
        told = [f'{key} {patch[key]}' for key in ('size', 'place') if key in patch]
        parts.append(', '.join([f'Patches on {first["images"]} images', *told]) + ':')
        parts.append(Table(head, rows))
    return Section('patches', 'Patches', parts)


def pictures_section(
    headline: Headline, attacks: Sequence[AttackResult]
) -> Section | None:
    """Compares attacked images with themselves as pictures of 8 bits."""
    rows = []
    for attack in attacks:
        stored = attack.quantized
        if not stored:
            continue
        # Like with like: the evaluator's mAP is not quite the analysis's.
        found = stored.get(attack.judged_by)
        both = attack.judged and found
        before = headline.read(attack.metrics, attack.judged if both else None)
        after = headline.read(stored['metrics'], found if both else None)
        values = [each and each.value for each in (before, after)]
        gap = before.value - after.value if before and after else None
        ends = [number(gap, signed=True), number(stored.get('radius'), 2)]
        rows.append([attack.name, *map(number, values), *ends])
    text = (
        'The attacked images rounded to 8 bits, stored as pictures and scored '
        'through the unchanged pipeline. A gap far from 0 means that the attack '
        'does not survive being a picture; below 0 it is weaker as one.'
    )
    head = ['attack', f'{headline.name} as computed', f'{headline.name} as a picture']
    head += ['gap', 'largest perturbation']
    return _table_section('pictures', 'As pictures', head, rows, text)


def load_section(
    benign: Mapping[str, Any] | None, attacks: Sequence[AttackResult]
) -> Section | None:
    """Tabulates what predictions cost without and with attacks."""
    given = [
        (BENIGN_LABEL, benign),
        *((attack.name, attack.load) for attack in attacks),
    ]
    rows = []
    for name, load in given:
        if not load:
            continue
        count, most = load['candidates'], load['bound']
        slower = load['seconds'] / benign['seconds'] if benign else None
        rows.append(
            [
                name,
                *(number(load[key], 1) for key in ('candidates', 'bound')),
                number(100 * count / most if most else None, 1),
                number(load['detections'], 1),
                str(load['max_per_img'] or MISSING),
                number(1000 * load['seconds'], 2),
                number(slower, 2),
            ]
        )
    text = (
        'Candidates are the predictions above the threshold of scores, which '
        'suppression compares with each other; the bound is how many there can be, by '
        "the number of points and the config's limits (nms_pre, proposals). Means over "
        'images. Milliseconds are of a whole prediction (median over images, each of '
        'three), measured apart from the attack: they depend on the machine and on '
        'what else it does, so that a repeated run finds others.'
    )
    head = ['attack', 'candidates', 'bound', '% of bound', 'detections']
    head += ['at most', 'prediction (ms)', 'times benign']
    return _table_section('load', 'Load of suppression', head, rows, text)


def gradients_section(attacks: Sequence[AttackResult]) -> Section | None:
    """Tabulates what was seen of the gradients, as far as it is numbers."""
    watched = [(attack.name, attack.watched) for attack in attacks if attack.watched]
    numbers = (key for _, seen in watched for key in seen if is_number(seen[key]))
    names = list(dict.fromkeys(numbers))
    if not names:
        return None
    rows = [[name, *(_short(seen.get(key)) for key in names)] for name, seen in watched]
    head = ['attack', *(name.replace('_', ' ') for name in names)]
    return _table_section('gradients', 'Gradients', head, rows)


def cost_section(attacks: Sequence[AttackResult]) -> Section:
    """Tabulates what the attacks cost."""
    counts = ['forwards', 'backwards']
    if any(attack.queries for attack in attacks):
        counts.append('queries')
    rows = []
    for attack in attacks:
        each = attack.per_image() or {}
        totals = [attack.images or MISSING, *(getattr(attack, key) for key in counts)]
        shares = [_short(each.get(key)) for key in (*counts, 'seconds')]
        seconds = f'{attack.seconds:.1f}'
        rows.append([attack.name, *map(str, totals), seconds, *shares])
    head = ['attack', 'images', *counts, 'seconds']
    head += [f'{count} per image' for count in (*counts, 'seconds')]
    return Section('cost', 'Cost', [Table(head, rows)])


def _table_section(
    key: str, title: str, head: Sequence[str], rows: list[list[str]], text: str = ''
) -> Section | None:
    """Returns a section with one table, unless that is empty."""
    if not rows:
        return None
    return Section(key, title, [*([text] if text else []), Table(head, rows)])


def _cell(value: Any) -> str:
    return '' if value is None else str(value)


def _text(figure: Figure | None) -> str:
    return figure.text() if figure else MISSING


def _short(value: Any) -> str:
    return f'{value:.4g}' if is_number(value) else MISSING
