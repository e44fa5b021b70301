"""Pooling of regions of interest.

Regions are ``(image, x1, y1, x2, y2)``, (n, 5), in pixels of the image;
``spatial_scale`` maps them to the feature map, (batch, channels, height, width).
"""

from __future__ import annotations

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from .precision import widen

_AVERAGE = 1


def _require_average(pool_mode: int) -> None:
    """Refuses the pooling that torchvision does not have."""
    if pool_mode != _AVERAGE:
        raise RuntimeError(
            "mmcv's roi_align with pool_mode='max' is not available: mmrobust's "
            "stand-in covers pool_mode='avg' only, so install full mmcv "
            '(`mim install mmcv`, or a compiled build of it).'
        )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Averages bilinear samples of the feature map in each bin of each region.

    Args:
        input: feature map, (b, c, h, w).
        rois: regions, (n, 5).
        output: where the averages go, (n, c, aligned_height, aligned_width).
        argmax_y: not used (of ``pool_mode`` 0).
        argmax_x: not used (of ``pool_mode`` 0).
        aligned_height: bins per column.
        aligned_width: bins per row.
        spatial_scale: size of the feature map over size of the image.
        sampling_ratio: samples per bin and axis; 0 takes one per pixel.
        pool_mode: 1, the average.
        aligned: shift the regions by half a pixel, so that pixel centres count.
    """
    _require_average(pool_mode)
    values, size = widen(input), (aligned_height, aligned_width)
    regions = rois.to(values.dtype)
    pooled = torch.ops.torchvision.roi_align(
        values, regions, spatial_scale, *size, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds the gradient of the feature map, (b, c, h, w), to ``grad_input``.

    The arguments are those of :func:`roi_align_forward`, with ``grad_output`` of
    shape (n, c, aligned_height, aligned_width).
    """
    _require_average(pool_mode)
    grad, size = widen(grad_output), (aligned_height, aligned_width)
    regions = rois.to(grad.dtype)
    grad_input += torch.ops.torchvision._roi_align_backward(
        grad, regions, spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned
    )


def _bins(
    low: Tensor, high: Tensor, count: int, size: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Splits n intervals into bins of whole pixels, which may overlap.

    Args:
        low: where the intervals start, (n,), in pixels.
        high: where they end, (n,).
        count: bins per interval.
        size: pixels there are; bins are cut to [0, size].

    Returns:
        First pixel, and the one after the last, of each bin, (n, count).
    """
    step = ((high - low) / count)[:, None]
    index = torch.arange(count + 1, device=low.device).to(low)
    first = (index[:-1] * step + low[:, None]).floor().clamp(0, size)
    last = (index[1:] * step + low[:, None]).ceil().clamp(0, size)
    return first.int().tolist(), last.int().tolist()


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Takes the maximum of the feature map in each bin of each region.

    mmcv scales ``x2 + 1`` and does not round the region; torchvision's kernel
    rounds it, so it can't be used. A loop over bins is slow on many regions, but
    mmdet's detectors use RoIAlign.

    Args:
        input: feature map, (b, c, h, w).
        rois: regions, (n, 5).
        output: where the maxima go, (n, c, pooled_height, pooled_width); 0 for
            empty bins.
        argmax: where their pixels go, ``y * w + x``, same shape, int32; -1 for
            empty bins.
        pooled_height: bins per column.
        pooled_width: bins per row.
        spatial_scale: size of the feature map over size of the image.
    """
    height, width = input.shape[-2:]
    corners = widen(rois)
    x1, y1 = corners[:, 1] * spatial_scale, corners[:, 2] * spatial_scale
    x2, y2 = (corners[:, 3] + 1) * spatial_scale, (corners[:, 4] + 1) * spatial_scale
    lefts, rights = _bins(x1, x2, pooled_width, width)
    tops, bottoms = _bins(y1, y2, pooled_height, height)
    proper = ((x2 > x1) & (y2 > y1)).tolist()
    output.zero_()
    argmax.fill_(-1)
    for n, image in enumerate(rois[:, 0].int().tolist()):
        if not proper[n]:
            continue
        for i, (top, bottom) in enumerate(zip(tops[n], bottoms[n], strict=True)):
            for j, (left, right) in enumerate(zip(lefts[n], rights[n], strict=True)):
                if bottom <= top or right <= left:
                    continue
                window = input[image, :, top:bottom, left:right].flatten(1)
                output[n, :, i, j], place = window.max(dim=1)
                row = top + place.div(right - left, rounding_mode='floor')
                column = left + place % (right - left)
                argmax[n, :, i, j] = (row * width + column).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Adds the gradient of the feature map, (b, c, h, w), to ``grad_input``.

    The arguments are those of :func:`roi_pool_forward`, with ``grad_output`` of
    shape (n, c, pooled_height, pooled_width).
    """
    channels, height, width = grad_input.shape[1:]
    plane = rois[:, :1].long() * channels
    plane = plane + torch.arange(channels, device=rois.device)
    pixel = plane[:, :, None, None] * (height * width) + argmax
    filled = argmax >= 0
    grad_input.view(-1).index_add_(0, pixel[filled], grad_output[filled])
