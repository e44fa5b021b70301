"""Class weights for an evaluation, from the training set where it is there."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch import Tensor

from .class_weights import class_weights, count_classes


def weights_for_evaluation(train_loader: Any, dataset: Any) -> tuple[Tensor, list[str]]:
    """Weights the classes by their counts in the training set.

    The published attack A_cwa should do so too; its code takes the evaluated set.

    Args:
        train_loader: config of the training data loader, or None.
        dataset: the evaluated dataset, which is counted if the other one cannot be.

    Returns:
        Weights (num_classes,), and notes for the report.
    """
    classes = _object_classes(dataset)
    notes = []
    try:
        train = MMENGINE_DATASETS.build(train_loader['dataset'])
        if _object_classes(train) != classes:
            raise ValueError('the training set has other classes')
        counts = count_classes([train], len(classes))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        notes.append(
            'class weights of cwa are those of the evaluated set, because the '
            f'training set could not be used ({error})'
        )
        print_log(notes[0], logger='current', level=logging.WARNING)
        counts = count_classes([dataset], len(classes))
    return class_weights(counts), notes


def _object_classes(dataset: Any) -> Any:
    """Classes of boxes; a panoptic dataset's background classes come after them."""
    return dataset.metainfo.get('thing_classes', dataset.metainfo['classes'])
