"""The gather and the scatter of mmcv's masked convolution (guided anchors)."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the patches around chosen pixels, with 0 beyond the edges.

    Args:
        im: Feature map, (1, c, h, w).
        mask_h_idx: Rows of the n chosen pixels, (n,), int64.
        mask_w_idx: Their columns, (n,), int64.
        col: Where the patches go, (c * kernel_h * kernel_w, n).
        kernel_h: Height of a patch.
        kernel_w: Width of a patch.
        pad_h: Rows of a patch above its pixel.
        pad_w: Columns of a patch left of its pixel.
    """
    height, width = im.shape[-2:]
    device = im.device
    y = mask_h_idx - pad_h + torch.arange(kernel_h, device=device)[:, None]
    x = mask_w_idx - pad_w + torch.arange(kernel_w, device=device)[:, None]
    inside_y, inside_x = (y >= 0) & (y < height), (x >= 0) & (x < width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    patches = im[0][:, y[:, None], x[None]]  # (c, kernel_h, kernel_w, n)
    patches = patches * (inside_y[:, None] & inside_x[None])
    col.copy_(patches.reshape(col.shape))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write values to chosen pixels; the others are left as they are.

    Args:
        col: Values, (channels, n).
        mask_h_idx: Rows of the n chosen pixels, (n,), int64.
        mask_w_idx: Their columns, (n,), int64.
        im: Where the values go, (1, channels, height, width).
        height: Height of ``im``.
        width: Width of ``im``.
        channels: Channels of ``im``.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col
