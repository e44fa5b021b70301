"""What the figures of a report come to, in sentences."""

import pytest
from mmrobust.report.results import AttackResult, Headline
from mmrobust.report.verdict import verdict

BENIGN = {'coco/bbox_mAP': 0.5}


def attack(name, figure, eps=4.0, **fields):
    metrics = {'coco/bbox_mAP': figure}
    return AttackResult(name, dict(norm='linf', eps=eps), metrics, **fields)


NOISE = attack('noise', 0.49, baseline=True)
PGD, APGD = attack('pgd', 0.2), attack('apgd', 0.125, eps=8.0)


def patch(name, figure, size, **fields):
    settings = dict(norm='linf', eps=255.0, patch=dict(size=size, place='object'))
    return AttackResult(name, settings, {'coco/bbox_mAP': figure}, **fields)


PATCHES = [
    patch('small', 0.3, '0.01'),
    patch('small-grey', 0.48, '0.01', baseline=True),
    patch('large', 0.1, '0.4'),
]


@pytest.mark.parametrize(
    ('attacks', 'worst', 'doubts', 'expected'),
    [
        ([], None, 0, ''),
        ([NOISE], None, 0, ''),
        ([attack('pgd', None)], None, 0, ''),
        (
            *([PGD, NOISE], None, 0),
            'Of bbox_mAP 0.500, **0.200** is left under **pgd** (linf, eps 4), 40% of '
            'it; noise of the same size leaves 0.490.',
        ),
        (
            *([NOISE, PGD, APGD], dict(mAP=0.1251), 1),
            'Of bbox_mAP 0.500, **0.125** is left under **apgd** (linf, eps 8), 25% of '
            'it. But a check says below why these figures may not hold.',
        ),
        (
            *([PGD, APGD], dict(mAP=0.1), 2),
            'Of bbox_mAP 0.500, **0.100** is left under the worst of all passes on '
            'each image, 20% of it. But 2 checks say below why these figures may not '
            'hold.',
        ),
        # A control of another size says nothing of a patch.
        (
            *(PATCHES, None, 0),
            'Of bbox_mAP 0.500, **0.100** is left under **large** (linf, eps 255), 20% '
            'of it.',
        ),
        (
            *([*PATCHES, patch('large-grey', 0.4, '0.4', baseline=True)], None, 0),
            'Of bbox_mAP 0.500, **0.100** is left under **large** (linf, eps 255), 20% '
            'of it; large-grey of the same size leaves 0.400.',
        ),
    ],
)
def test_sentences(attacks, worst, doubts, expected):
    assert verdict(Headline(BENIGN, None), attacks, worst, doubts) == expected


def test_nothing_left_of_nothing():
    headline = Headline({'coco/bbox_mAP': 0.0}, None)
    text = verdict(headline, [attack('pgd', 0.0)], None, 0)
    assert text == 'Of bbox_mAP 0.000, **0.000** is left under **pgd** (linf, eps 4).'
