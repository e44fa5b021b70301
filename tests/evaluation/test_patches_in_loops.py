"""Patch attacks in evaluations: controls, what the report says of patches, spaces."""

from typing import Any

import numpy as np
import pytest
import tiny
from evaluated import ap, attack_of, images_of
from mmrobust.errors import ConfigError

PATCH = dict(type='mmrobust.Patch', size=0.3, num_steps=3)
FEW: dict[str, Any] = dict(num_images=3, check_images=0)
NAMES = ('patch', 'patch-random', 'patch-grey')


def test_controls_stand_beneath_the_attack(evaluate, tmp_path):
    folder = tmp_path / 'adv'
    report = evaluate(
        dict(patch=PATCH, noise=dict(type='mmrobust.RandomNoise', eps=255)),
        save_adv=str(folder),
        **FEW,
    )
    assert [each['name'] for each in report['attacks']] == [*NAMES, 'noise']
    patch, random, grey = (attack_of(report, name) for name in NAMES)
    assert ap(patch) < min(ap(random), ap(grey))
    # Whole images of noise are no control of a patch.
    assert not any(each['checks'] for each in report['attacks'])
    assert random['cost']['forwards'] == grey['cost']['forwards'] == 0
    images = images_of(folder)
    for name in {key.split('/')[-1] for key in images}:
        found = {key: images[f'{key}/{name}'] for key in NAMES}
        plain = (found['patch-grey'] == 128).all(0)
        for each in found.values():
            assert np.array_equal(each[:, ~plain], found['patch'][:, ~plain])
    seen = patch['patches']
    assert seen['objects'] == [3, 0, 0, 0]
    assert seen['images'] == 2
    assert seen['benign'] == random['patches']['benign']
    assert seen['benign']['by_distance'][1:] == [None] * 3
    text = (tmp_path / 'r.md').read_text()
    assert '## Patches' in text
    assert '| patch-grey | ' in text.split('## Patches')[1]


def test_original_pixels_have_their_patches_in_the_same_places(evaluate, coco):
    """Of a pipeline that halves the picture; sizes are shares of areas."""
    loader = tiny.loader(coco, test=True, scale=(48, 64))
    reports = [
        evaluate(
            dict(patch={**PATCH, 'size': 0.2, 'place': 'beside', 'num_steps': 1}),
            overrides=dict(test_dataloader=loader),
            space=space,
            quantize=True,
            **FEW,
        )
        for space in ('input', 'original')
    ]
    first, second = (attack_of(each, 'patch') for each in reports)
    assert first['patches']['images'] == second['patches']['images']
    assert second['quantized']['radius'] <= 255


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(size='500x4'), 'larger than a picture'),
        (dict(place='400,3'), 'lies outside of a picture'),
    ],
)
def test_what_does_not_fit_is_refused_before_compute(evaluate, settings, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(dict(patch={**PATCH, **settings}))


def test_a_control_keeps_its_name(evaluate):
    other = dict(type='mmrobust.RandomNoise')
    with pytest.raises(ConfigError, match="'patch-grey' in attacks is the name of a"):
        evaluate({'patch': PATCH, 'patch-grey': other})
