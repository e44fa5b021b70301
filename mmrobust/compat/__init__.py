"""Mends, from outside, what is missing in the OpenMMLab stack."""

from __future__ import annotations

from .checkpoints import allow_mmengine_checkpoints
from .imports import after_import
from .mmcv_ops import install as install_mmcv_ops
from .mmcv_ops import is_standin_active
from .multimodal import leave_out_multimodal


def install() -> None:
    """Applies every repair that the installed packages need; safe to call again.

    Packages that are not installed are left alone, so a bare ``import mmrobust``
    works without mmcv, mmengine or mmdet. torch, which takes seconds to import, is
    mended when somebody else imports it.
    """
    install_mmcv_ops()
    after_import('torch', allow_mmengine_checkpoints)
    after_import('mmpretrain.utils.dependency', leave_out_multimodal)


__all__ = [
    'after_import',
    'allow_mmengine_checkpoints',
    'install',
    'install_mmcv_ops',
    'is_standin_active',
    'leave_out_multimodal',
]
