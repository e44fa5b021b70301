"""Fits tables of positions, and patches, of weights to other windows and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..resizing import bilinear_weights


def fit_tables(
    module: nn.Module, own: Mapping[str, Tensor], given: dict[str, Tensor]
) -> list[str]:
    """Fits what a module has in another size than a file.

    A Swin's position biases are interpolated bicubically to another window, patches
    resized to larger ones. Position embeddings are left as they are where mmpretrain
    interpolates them itself while it loads them.

    Args:
        module: a backbone, or a classifier of mmpretrain.
        own: the module's weights.
        given: those of the file under the same names; what is fitted is replaced.

    Returns:
        The names of all that is, or will be, fitted.
    """
    fitted = []
    for name, value in given.items():
        if value.shape == own[name].shape:
            continue
        new = None
        if name.endswith('relative_position_bias_table'):
            new = _resized_biases(value, own[name].shape)
        elif name.endswith('patch_embed.projection.weight'):
            new = _larger_patches(value, own[name].shape)
        elif _mmpretrain_fits(module, name, value, own[name]):
            new = value
        if new is not None:
            given[name] = new
            fitted.append(name)
    return fitted


def _resized_biases(table: Tensor, shape: torch.Size) -> Tensor | None:
    """From ((2 * old - 1)^2, heads) to ((2 * new - 1)^2, heads), as mmdet does it."""
    if table.ndim != 2 or table.shape[1] != shape[1]:
        return None
    old, new = isqrt(table.shape[0]), isqrt(shape[0])
    if (old**2, new**2) != (table.shape[0], shape[0]):
        return None
    grid = table.T.reshape(1, -1, old, old)
    return F.interpolate(grid, (new, new), mode='bicubic').flatten(2)[0].T.contiguous()


def _larger_patches(weight: Tensor, shape: torch.Size) -> Tensor | None:
    """Resizes patches (width, channels, side, side) so that tokens stay the same.

    They stay so for patches whose pixels are enlarged bilinearly. Source: Beyer et al.,
    "FlexiViT", arXiv 2212.08013, section 3.4.
    """
    old, new = weight.shape[-1], shape[-1]
    square = weight.shape[2:] == (old, old) and shape[2:] == (new, new)
    if weight.shape[:2] != shape[:2] or not square or new < old:
        return None
    back = torch.linalg.pinv(bilinear_weights(old, new).T)
    return (back @ weight.double() @ back.T).to(weight)


def _mmpretrain_fits(
    module: nn.Module, name: str, theirs: Tensor, ours: Tensor
) -> bool:
    """Tells of a position embedding whether mmpretrain fits it to the image size."""
    owner: Any = getattr(module, 'backbone', module)
    wanted = 'pos_embed' if owner is module else 'backbone.pos_embed'
    if name != wanted or not hasattr(owner, '_prepare_pos_embed'):
        return False
    if theirs.ndim != 3 or theirs.shape[::2] != ours.shape[::2]:
        return False
    rows, columns = owner.patch_embed.init_out_size
    # The class token has a place in some; mmpretrain takes the rest for a square.
    patches = theirs.shape[1] - (ours.shape[1] - rows * columns)
    return patches > 0 and isqrt(patches) ** 2 == patches
