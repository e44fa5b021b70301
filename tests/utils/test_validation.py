"""Sizes of perturbations, as people write them."""

import math

import pytest
from mmrobust.attacks import PGD
from mmrobust.errors import ConfigError
from mmrobust.training import PGDAdversary
from mmrobust.utils.validation import to_pixels


@pytest.mark.parametrize(
    ('given', 'pixels'),
    [(4, 4), ('4', 4), ('4/255', 4), ('0.5/255', 0.5), (0, 0), ('1/51', 5), (1.5, 1.5)],
)
def test_sizes_in_pixel_units(given, pixels):
    assert to_pixels(given) == pytest.approx(pixels, rel=1e-12)


def test_the_unit_scale_is_refused_with_the_value_that_was_meant():
    with pytest.raises(ConfigError, match=r'eps=4\.08'):
        to_pixels(0.016)


@pytest.mark.parametrize(
    ('norm', 'radius', 'meant'),
    [('l2', 2, '510'), ('l2', 5, '1275'), ('l1', 75, '19125')],
)
def test_radii_of_papers_for_unit_images_are_refused(norm, radius, meant):
    """l2 and l1 radii for [0, 1] images are whole numbers that look like pixels."""
    with pytest.raises(ConfigError, match=f'write eps={meant} if that was meant'):
        to_pixels(radius, norm=norm)
    with pytest.raises(ConfigError, match='looks like the'):
        PGD(norm, radius)
    with pytest.raises(ConfigError, match='looks like the'):
        PGDAdversary(norm, radius)
    assert PGD(norm, f'{radius}/255').threat.eps == radius  # really that small
    assert to_pixels(float(meant), norm=norm) == float(meant)


@pytest.mark.parametrize(
    'given', [-1, '-4/255', math.nan, math.inf, 'four', '4/0', None, True, '1/2/3']
)
def test_no_size(given):
    with pytest.raises(ConfigError, match='pixel units'):
        to_pixels(given)
