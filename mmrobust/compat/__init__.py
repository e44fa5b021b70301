"""Mends, from outside, what is missing in the OpenMMLab stack."""

from __future__ import annotations

from .checkpoints import allow_mmengine_checkpoints
from .mmcv_ops import install as install_mmcv_ops
from .mmcv_ops import is_standin_active


def install() -> None:
    """Applies every repair that the installed packages need; safe to call again.

    Packages that are not installed are left alone, so a bare ``import mmrobust``
    works without mmcv, mmengine or mmdet.
    """
    install_mmcv_ops()
    allow_mmengine_checkpoints()


__all__ = [
    'allow_mmengine_checkpoints',
    'install',
    'install_mmcv_ops',
    'is_standin_active',
]
