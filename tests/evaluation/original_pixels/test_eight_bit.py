"""Attacked images as files."""

import cv2
import numpy as np
import pytest
import torch

from mmrobust.errors import ConfigError
from mmrobust.evaluation.original_pixels import as_picture, radius, through_file
from mmrobust.threat import ThreatModel


def test_values_are_rounded_and_not_truncated():
    image = torch.tensor([[[0.4, 0.6, 254.7]], [[-3.0, 300.0, 7.0]]])
    assert as_picture(image).tolist() == [[[0, 0], [1, 255], [255, 7]]]
    assert as_picture(image).dtype == np.uint8


def test_not_finite_values_are_refused():
    with pytest.raises(ConfigError, match='not finite'):
        as_picture(torch.tensor([[[float('nan')]]]))


def test_a_file_holds_the_picture(monkeypatch):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    assert np.array_equal(through_file(picture), picture)
    monkeypatch.setattr(cv2, 'imread', lambda *_: picture + 1)
    with pytest.raises(ConfigError, match='does not hold what was written'):
        through_file(picture)
    monkeypatch.setattr(cv2, 'imwrite', lambda *_: False)
    with pytest.raises(ConfigError, match='does not hold what was written'):
        through_file(picture)


def test_radii_are_those_of_whole_pictures():
    clean = np.zeros((1, 2, 3), np.uint8)
    other = np.array([[[3, 0, 0], [0, 4, 0]]], np.uint8)
    assert radius(other, clean, 'linf') == 4
    assert radius(other, clean, 'l2') == 5
    assert radius(other, clean, 'l1') == 7
    # Unsigned differences would wrap around.
    assert radius(clean, other, 'linf') == 4


def test_rounding_keeps_the_linf_ball_and_not_the_l2_ball():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (3, 40, 50), generator=generator).float()
    before = as_picture(clean)
    for _ in range(20):
        image = ThreatModel('linf', 4).random_start(clean, generator)
        assert radius(as_picture(image), before, 'linf') <= 4
    image = ThreatModel('l2', 60).random_boundary(clean, generator)
    assert radius(image.permute(1, 2, 0).numpy(), before, 'l2') <= 60 + 1e-3
    assert radius(as_picture(image), before, 'l2') > 60
