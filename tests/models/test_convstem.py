"""The shared stem builder: sizes, and equality with stems written out."""

from __future__ import annotations

import pytest
import torch
from convstem_reference import STEMS, plain_stem, randomise
from mmrobust.models.convnext import conv_stem, conv_stem_16


@pytest.mark.parametrize('name', STEMS)
def test_a_stem_is_the_published_one(name: str) -> None:
    layers, last = STEMS[name]
    stem = conv_stem(3, layers) if last is None else conv_stem_16(3, last)
    plain = randomise(plain_stem(name))
    stem.load_state_dict(plain.state_dict())  # the same names, none left over
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = stem(image)
        torch.testing.assert_close(found, plain(image), atol=1e-4, rtol=0)
    side = 56 if last is None else 14
    assert found.shape == (1, last or layers[-1][0], side, side)


def test_odd_sides_are_rounded_up() -> None:
    with torch.no_grad():
        assert conv_stem_16(3, 8)(torch.zeros(1, 3, 33, 17)).shape == (1, 8, 3, 2)
