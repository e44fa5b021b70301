"""A stand-in for the package of corruptions: quick, and of a few lines."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
from mmrobust.corruptions import NAMES


def corrupt(image, severity, corruption_name, seed=None):
    """Darkens and adds noise; the later a corruption stands, the darker."""
    rng = np.random if seed is None else np.random.default_rng(seed)
    darker = image * (1 - severity / 10 - NAMES.index(corruption_name) / 100)
    return np.uint8((darker + rng.normal(0, 3 * severity, image.shape)).clip(0, 255))


def seeded_blur(image, severity, seed=None):
    """Of the signature by which the package is known."""


def put_in_place(patch):
    """Puts it where the package would be."""
    module = ModuleType('imagecorruptions')
    module.corrupt = corrupt
    module.corruption_dict = {'glass_blur': seeded_blur}
    patch.setitem(sys.modules, 'imagecorruptions', module)
