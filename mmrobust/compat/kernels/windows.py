"""Kernels that gather windows of a map: CARAFE and mmcv's masked convolution.

CARAFE, the content-aware reassembly of features (Wang et al., ICCV 2019), is an
upsampling: each pixel of the larger map is the sum of a k x k window of the smaller
one, weighted by a kernel that is predicted for that pixel. Masks hold the kernels,
(b, groups * k * k, h * s, w * s), features (b, c, h, w), outputs (b, c, h * s, w * s).
The masked convolution (of guided anchors) gathers patches around chosen pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import widen


def _windows(
    features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int
) -> Iterator[tuple[int, Any, Tensor, Tensor]]:
    """Yields, per element of the kernel, what is multiplied.

    One element at a time keeps the memory at that of the output, where unfolding
    would need k * k times as much.

    Yields:
        The index of the element; its rows and columns in the padded map;
        features, (b, groups, c / groups, h, 1, w, 1); masks, (b, groups, 1, h, s,
        w, s).
    """
    height, width = features.shape[-2:]
    padded = F.pad(features, (kernel // 2,) * 4).unflatten(1, (groups, -1))
    grid = (height, scale, width, scale)
    kernels = masks.unflatten(1, (groups, kernel * kernel))
    kernels = kernels.reshape(*kernels.shape[:3], *grid)
    for element in range(kernel * kernel):
        y, x = divmod(element, kernel)
        place = (..., slice(y, y + height), slice(x, x + width))
        window = padded[place][..., :, None, :, None]
        yield element, place, window, kernels[:, :, element, None]


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Writes the upsampled features to ``output``, of the shapes named above.

    Args:
        features: the smaller map.
        masks: kernels of the pixels of the larger map.
        output: where the larger map goes.
        kernel_size: k, odd.
        group_size: groups of channels that have their own kernels.
        scale_factor: s, a whole number.
    """
    total: Any = 0.0
    geometry = (kernel_size, group_size, scale_factor)
    for _, _, window, kernel in _windows(widen(features), widen(masks), *geometry):
        total = total + window * kernel
    output.copy_(total.reshape(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Adds the gradients of features and masks to ``bottom_grad`` and ``mask_grad``.

    The other arguments are those of :func:`carafe_naive_forward`, with ``top_grad``
    of the shape of its output.
    """
    height, width = features.shape[-2:]
    border = kernel_size // 2
    grid = (height, scale_factor, width, scale_factor)
    grad = widen(top_grad).unflatten(1, (group_size, -1))
    grad = grad.reshape(*grad.shape[:3], *grid)
    padded = F.pad(widen(bottom_grad), (border,) * 4).unflatten(1, (group_size, -1))
    mask_grads = mask_grad.unflatten(1, (group_size, kernel_size * kernel_size))
    geometry = (kernel_size, group_size, scale_factor)
    windows = _windows(widen(features), widen(masks), *geometry)
    for element, place, window, kernel in windows:
        padded[place] += (grad * kernel).sum(dim=(-3, -1))
        share = (grad * window).sum(dim=2)
        mask_grads[:, :, element] += share.reshape(mask_grads[:, :, element].shape)
    inner = padded[..., border : border + height, border : border + width]
    bottom_grad.copy_(inner.reshape(bottom_grad.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Writes the upsampled features to ``output``.

    ``rfeatures``, of the shape of ``features``, keeps what the backward pass needs
    (the compiled kernel keeps a reordered copy); ``routput`` and ``rmasks`` are not
    used. The rest is as in :func:`carafe_naive_forward`.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Adds the gradients of features and masks to ``bottom_grad`` and ``mask_grad``.

    ``rfeatures`` is what :func:`carafe_forward` kept; the other buffers named
    ``r...`` are not used. The rest is as in :func:`carafe_naive_backward`.
    """
    sizes = (kernel_size, group_size, scale_factor)
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, *sizes)


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
    """Writes the patches around chosen pixels, with 0 beyond the edges.

    Args:
        im: feature map, (1, c, h, w).
        mask_h_idx: rows of the n chosen pixels, (n,), int64.
        mask_w_idx: their columns, (n,), int64.
        col: where the patches go, (c * kernel_h * kernel_w, n).
        kernel_h: height of a patch.
        kernel_w: width of a patch.
        pad_h: rows of a patch above its pixel.
        pad_w: columns of a patch left of its pixel.
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
    """Writes values to chosen pixels; the others are left as they are.

    Args:
        col: values, (channels, n).
        mask_h_idx: rows of the n chosen pixels, (n,), int64.
        mask_w_idx: their columns, (n,), int64.
        im: where the values go, (1, channels, height, width).
        height: height of ``im``.
        width: width of ``im``.
        channels: channels of ``im``.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col
