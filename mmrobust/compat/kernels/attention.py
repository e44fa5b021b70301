"""Multi-scale deformable attention.

Zhu et al., "Deformable DETR: deformable transformers for end-to-end object
detection", ICLR 2021, equation 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import widen


def _attend(
    value: Tensor,
    shapes: list[list[int]],
    starts: list[int],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Sums the weighted bilinear samples of each query; for the shapes see below."""
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (b * heads, d, keys)
    # grid_sample wants [-1, 1] from edge to edge where locations have [0, 1].
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (b * heads, q, l, p, 2)
    weights = weights.transpose(1, 2).flatten(0, 1)  # (b * heads, q, l, p)
    total = maps.new_zeros((batch * heads, width, queries))
    for level, ((height, length), start) in enumerate(zip(shapes, starts, strict=True)):
        image = maps[..., start : start + height * length]
        samples = F.grid_sample(
            image.unflatten(-1, (height, length)),
            grids[:, :, level],
            mode='bilinear',
            padding_mode='zeros',
            align_corners=False,
        )  # (b * heads, d, q, p)
        total = total + (samples * weights[:, None, :, level]).sum(dim=-1)
    return total.reshape(batch, heads * width, queries).transpose(1, 2).contiguous()


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Returns the attention of each query over its sampling points.

    Args:
        value: feature maps of all levels, one pixel a key, (b, keys, heads, d).
        value_spatial_shapes: height and width of each level, (levels, 2).
        value_level_start_index: first key of each level, (levels,).
        sampling_locations: where queries look, (x, y) in [0, 1] of the level; what
            lies outside counts as 0; (b, q, heads, levels, points, 2).
        attention_weights: weights of the points, (b, q, heads, levels, points).
        im2col_step: not used, it splits the batch for the compiled kernel.

    Returns:
        (b, q, heads * d).
    """
    return _attend(
        widen(value),
        value_spatial_shapes.tolist(),
        value_level_start_index.tolist(),
        widen(sampling_locations),
        widen(attention_weights),
    ).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Adds the gradients of value, locations and weights to the tensors ``grad_*``.

    The forward pass is computed again; the other arguments are those of
    :func:`ms_deform_attn_forward`, with ``grad_output`` of shape (b, q, heads * d).
    """
    inputs = [
        widen(tensor).detach().requires_grad_()
        for tensor in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = _attend(
            inputs[0],
            value_spatial_shapes.tolist(),
            value_level_start_index.tolist(),
            *inputs[1:],
        )
    grads = torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
    grad_value += grads[0]
    grad_sampling_loc += grads[1]
    grad_attn_weight += grads[2]
