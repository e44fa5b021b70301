"""Compares the class names of a checkpoint, a model, a dataset and its annotations.

A label is a place in a list of names, so that a name which is misspelt, missing or in
another place drops or exchanges objects without any error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from torch import nn

from ..errors import ConfigError
from ..utils.validation import did_you_mean


def check_classes(
    model: nn.Module,
    dataset: Any,
    metrics: Sequence[Any] = (),
    trained_on: Sequence[str] | None = None,
) -> list[str]:
    """Makes sure that labels mean the same everywhere, before any pass.

    Args:
        model: the bare detector; those that read class names as text fit any number.
        dataset: an mmdet dataset or a wrapper of some.
        metrics: of the evaluator; their annotation files are compared, too.
        trained_on: the classes that the checkpoint names, None if it names none.

    Returns:
        Sentences for the report's checks, on names that differ and may be meant so.

    Raises:
        ConfigError: for a class that no annotation can have, an order or a number of
            classes that is not the checkpoint's, or not the model's.
    """
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    if isinstance(classes, str):
        raise ConfigError(
            f'metainfo.classes={classes!r} is a text, of which every letter would be '
            f'a class: write classes=({classes!r},).'
        )
    if not classes:
        return []
    _check_annotated(dataset, metrics, classes)
    counts = _class_counts(model)
    if trained_on is None:
        things = getattr(dataset, 'metainfo', {}).get('thing_classes') or classes
        if counts and not {len(classes), len(things)} & counts:
            raise ConfigError(
                f'the model has {" or ".join(map(str, sorted(counts)))} classes '
                f'and the dataset has {len(classes)} ({_some(classes)}): set '
                "num_classes in the model's head, or metainfo.classes of the dataset."
            )
        return []
    return _compare(tuple(trained_on), tuple(classes), counts)


def _compare(known: tuple, classes: tuple, counts: set[int]) -> list[str]:
    if known == classes:
        return []
    moved = [name for name in classes if name in known]
    if len(known) != len(classes):
        sentence = (
            f'the checkpoint was trained on {len(known)} classes ({_some(known)}) and '
            f'metainfo.classes of the dataset has {len(classes)} ({_some(classes)})'
        )
        if len(known) in counts:
            raise ConfigError(
                f"{sentence}: give the dataset the checkpoint's classes; those without "
                'an object do not count.'
            )
        return [f'{sentence}: do labels mean the same?']
    pairs = [(i, *p) for i, p in enumerate(zip(known, classes, strict=True))]
    differing = [(i, ours, theirs) for i, ours, theirs in pairs if ours != theirs]
    place, ours, theirs = differing[0]
    if any(name in moved for _, _, name in differing):
        raise ConfigError(
            'metainfo.classes of the dataset are in another order than in the '
            f'checkpoint: class {place} is {theirs!r} and was {ours!r} in training.'
        )
    return [
        f'{len(differing)} of {len(classes)} classes have another name in the dataset '
        f'than in the checkpoint (class {place} is {theirs!r} and was {ours!r} in '
        'training): objects of a name that is not among metainfo.classes do not count.'
    ]


def _check_annotated(
    dataset: Any, metrics: Sequence[Any], classes: Sequence[str]
) -> None:
    """Refuses a class that is no category of an annotation file."""
    files = []
    for metric in metrics:
        categories = getattr(getattr(metric, '_coco_api', None), 'cats', None)
        if isinstance(categories, dict):
            names = [str(each.get('name')) for each in categories.values()]
            files.append((f'the annotation file of {type(metric).__name__}', names))
    for part in parts(dataset):
        if not files and (names := categories_of(part)):
            files.append((f'{part.ann_file}', names))
    for file, names in files:
        for name in [each for each in classes if each not in names][:1]:
            raise ConfigError(
                f'{file} has no category {name!r}, a class of the dataset'
                f'{did_you_mean(name, names)}: it has {_some(names)}; is it the '
                'ann_file of the dataset?'
            )
    for part in parts(dataset):
        _check_xml(part, classes)


def _check_xml(dataset: Any, classes: Sequence[str]) -> None:
    """Refuses a class that no object has, if one that is not a class is spelt so."""
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    if not all('xml_path' in info for info in infos):
        return
    found = {
        label
        for info in infos
        for each in info.get('instances', ())
        if (label := each.get('bbox_label')) is not None
    }
    absent = [name for label, name in enumerate(classes) if label not in found]
    if not absent:
        return
    others = _xml_names(infos) - set(classes)
    for name in absent:
        if near := did_you_mean(name, sorted(others)):
            raise ConfigError(
                f'no object of the dataset has the class {name!r} of metainfo'
                f'{near}, which annotations have and metainfo has not.'
            )


def _xml_names(infos: Sequence[dict]) -> set[str]:
    roots = (ElementTree.parse(info['xml_path']).getroot() for info in infos)
    return {
        str(each.findtext('name')) for root in roots for each in root.iter('object')
    }


def no_class_of_annotations(dataset: Any) -> str:
    """Says that no class of a dataset is in its annotations, or returns ``''``."""
    classes = getattr(dataset, 'metainfo', {}).get('classes') or ()
    for part in parts(dataset):
        names = categories_of(part)
        if names and not set(names) & set(classes):
            ours = _some(classes) if classes else 'no class'
            return (
                f'metainfo names {ours}, and {part.ann_file} has the categories '
                f'{_some(names)}'
            )
    return '' if classes else 'metainfo names no classes'


def parts(dataset: Any) -> Iterator[Any]:
    """Yields the datasets inside wrappers of some."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None and hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    if inner is None:
        yield dataset
        return
    for each in inner:
        yield from parts(each)


def categories_of(dataset: Any) -> list[str]:
    """Returns the category names of a COCO annotation file, if there is one."""
    path = getattr(dataset, 'ann_file', None)
    if not isinstance(path, str) or not path.endswith('.json'):
        return []
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        return [str(each['name']) for each in content['categories']]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # on another kind of disk, or of another kind


def _class_counts(model: nn.Module) -> set[int]:
    """Returns how many classes the heads of a detector have, if that is fixed."""
    if hasattr(model, 'language_model') or hasattr(model, 'text_model'):
        return set()
    found = {
        module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and not name.endswith('rpn_head')
    }
    return {count for count in found if count > 0}  # SSD's backbone says -1


def _some(names: Sequence[str]) -> str:
    return ', '.join(map(str, names[:10])) + (', ...' if names[10:] else '')
