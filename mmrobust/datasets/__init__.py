"""The demo data, made on the machine that uses them, and sets in tar files."""

from __future__ import annotations

from importlib.util import find_spec

from .digits import DigitsDataset, digits_root, make_digits

__all__ = ['DigitsDataset', 'digits_root', 'make_digits']

if find_spec('mmpretrain') is not None:  # detection alone does not need it
    from .digit_crops import CropBox, DigitCropsDataset
    from .tar_shards import TarShardsDataset

    __all__ += ['CropBox', 'DigitCropsDataset', 'TarShardsDataset']
