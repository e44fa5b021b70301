"""The table of named objectives: which loss terms, on which truth, with which sign."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The head's classification and box terms, as the attacks A_cls, A_reg and A_cwa of
# arXiv 2305.17438 use them (its code: head losses only, no RPN, centerness or
# auxiliary-layer terms).
CLS, REG = 'loss_cls', 'loss_bbox'

# What becomes of each class, where an objective wants another one.
TARGETS = ('most-likely', 'least-likely', 'next')


@dataclass(frozen=True)
class Kind:
    """A named objective.

    Attributes:
        terms: names of loss terms, a pattern of names, or None for all.
        sign: 1 to raise the terms, -1 to lower them.
        truth: the ground truth: the image's ``'own'``, ``'none'``, or its boxes
            ``'relabelled'``.
        scores: what replaces the classification loss: ``'weighted'`` by class,
            ``'background'``, ``'margin'`` or ``'ranking'``; None if nothing does.
        reads: what is read of an image: its ``'losses'``, or predictions before
            suppression by their ``'ranking'`` or by how many there are (``'count'``).
        target: where labels change, the default of :data:`TARGETS`, or ``'given'``.
        of_objects: whether it is about the objects alone and has no aim where there is
            none; images without objects then get ``'fabricate'``.
        maximises: one line of Markdown for the table of attacks, of which those with
            such a line are one by themselves (20 steps of PGD).
        source: where it comes from, for the same table: an arXiv number or Markdown.
        lacking: the part of a detector that the terms belong to, for the message to
            whose model has none.
    """

    terms: tuple[str, ...] | re.Pattern | None
    sign: int = 1
    truth: str = 'own'
    scores: str | None = None
    reads: str = 'losses'
    target: str | None = None
    of_objects: bool = False
    maximises: str = ''
    source: str = ''
    lacking: str = ''


# Semantic segmentation's terms look at no object.
_OF_OBJECTS = re.compile(r'(?!loss_seg$|loss_semantic_seg$).*')
_RPN = re.compile(r'.*rpn.*')
_OBJECTNESS = re.compile(
    r'(.*[._])?(loss_obj|loss_conf|loss_centerness|loss_cls_objectness'
    r'|loss_rpn_cls|rpn_loss_cls)'
)

_TOG = '[2004.04320](https://arxiv.org/abs/2004.04320)'

NAMED = {
    'total': Kind(None),
    'cls': Kind((CLS,)),
    'reg': Kind((REG,)),
    'cls+reg': Kind((CLS, REG)),
    'cwa': Kind((CLS, REG), scores='weighted'),
    'vanish': Kind(
        _OF_OBJECTS,
        sign=-1,
        truth='none',
        maximises='minus all losses on empty ground truth: nothing is to be detected',
        source=f'TOG-vanishing, {_TOG}',
    ),
    'fabricate': Kind(
        _OF_OBJECTS,
        truth='none',
        maximises='all losses on empty ground truth: more is to be detected',
        source=f'TOG-fabrication, {_TOG}',
    ),
    'mislabel': Kind(
        (CLS,),
        sign=-1,
        truth='relabelled',
        target='most-likely',
        of_objects=True,
        maximises='minus the classification loss on other labels in the same boxes',
        source=f'TOG-mislabeling, {_TOG}, of which only the classification term is '
        'used',
    ),
    'targeted': Kind(
        (CLS,),
        sign=-1,
        truth='relabelled',
        target='given',
        maximises='minus the classification loss with every label set to one class',
        source=f'TOG-mislabeling, {_TOG}, with a chosen class',
    ),
    'background': Kind(
        (CLS,),
        scores='background',
        of_objects=True,
        maximises='the log-probability that predictions assigned to objects are '
        'background',
    ),
    'dag': Kind(
        (CLS,),
        scores='margin',
        target='most-likely',
        of_objects=True,
        maximises='adversarial minus true logit, summed over the predictions assigned '
        'to objects that are still right',
        source='after DAG, [1703.08603](https://arxiv.org/abs/1703.08603)',
    ),
    'ranking': Kind(
        (CLS,),
        scores='ranking',
        reads='ranking',
        maximises='by how much the 20 highest false predictions outrank those of each '
        'object, before suppression',
        source='what AP counts: the order of scores, as in AP loss, '
        '[1904.06373](https://arxiv.org/abs/1904.06373)',
    ),
    'latency': Kind(
        (CLS,),
        reads='count',
        maximises='a soft count of the predictions above the threshold of scores, all '
        'of which suppression has to compare',
        source='after Overload, [2304.05370](https://arxiv.org/abs/2304.05370)',
    ),
    'rpn': Kind(
        _RPN,
        maximises='the losses of the region proposal network alone',
        lacking='region proposal network',
    ),
    'objectness': Kind(
        _OBJECTNESS,
        maximises='what says "here is something" whatever its class: the RPN\'s '
        "classification, YOLO's objectness, the centerness",
        lacking='objectness or centerness',
    ),
}
