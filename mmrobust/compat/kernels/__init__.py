"""The operators of mmcv's compiled extension that mmrobust stands in for.

Each function has the name, the argument names and the effects of the C++ function
that ``mmcv/ops/*.py`` calls (bound in ``mmcv/ops/csrc/pytorch/pybind.cpp``): most of
them write into tensors that the caller has allocated, and gradients are added to
what is there. All work on CPU and on CUDA; half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import attention, boxes, deform, focal, roi, windows


def get_compiler_version() -> str:
    """Returns what mmcv's environment report shows as its compiler."""
    return "none (mmrobust's stand-in)"


def get_compiling_cuda_version() -> str:
    """Returns what mmcv's environment report shows as its CUDA compiler."""
    return "none (mmrobust's stand-in)"


KERNELS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        attention.ms_deform_attn_backward,
        attention.ms_deform_attn_forward,
        boxes.bbox_overlaps,
        boxes.nms,
        boxes.nms_match,
        boxes.softnms,
        windows.carafe_backward,
        windows.carafe_forward,
        windows.carafe_naive_backward,
        windows.carafe_naive_forward,
        deform.deform_conv_backward_input,
        deform.deform_conv_backward_parameters,
        deform.deform_conv_forward,
        deform.modulated_deform_conv_backward,
        deform.modulated_deform_conv_forward,
        focal.sigmoid_focal_loss_backward,
        focal.sigmoid_focal_loss_forward,
        focal.softmax_focal_loss_backward,
        focal.softmax_focal_loss_forward,
        get_compiler_version,
        get_compiling_cuda_version,
        windows.masked_col2im_forward,
        windows.masked_im2col_forward,
        roi.roi_align_backward,
        roi.roi_align_forward,
        roi.roi_pool_backward,
        roi.roi_pool_forward,
    )
}
"""Operator by name."""

__all__ = ['KERNELS']
