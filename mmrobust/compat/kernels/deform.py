"""Deformable convolutions, versions 1 and 2, on torchvision's kernel.

Dai et al., "Deformable convolutional networks", ICCV 2017; Zhu et al., "Deformable
ConvNets v2", CVPR 2019. Both libraries order the offsets alike: per offset group and
kernel element first the vertical, then the horizontal one. The buffers ``columns``
and ``ones`` and the size ``im2col_step`` are the compiled kernels' own business.
"""

from __future__ import annotations

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from .precision import widen


def _mask_and_bias(
    input: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns mask and bias, or what torchvision's kernel wants where none is."""
    if mask is None:
        mask = input.new_zeros((input.shape[0], 1))
    if bias is None:
        bias = input.new_zeros(weight.shape[0])
    return widen(mask), widen(bias)


def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> Tensor:
    """Convolves; ``geometry`` is stride, padding, dilation (y, x) and both groups."""
    rest = _mask_and_bias(input, weight, mask, bias)
    tensors = (widen(input), widen(weight), widen(offset), *rest)
    masked = mask is not None
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, masked)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    geometry: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Returns the gradients of input, weight, offset, mask and bias."""
    rest = _mask_and_bias(input, weight, mask, None)
    tensors = (widen(grad_output), widen(input), widen(weight), widen(offset), *rest)
    masked = mask is not None
    return torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, masked)


def _as_read(field: Tensor, height: int, width: int) -> Tensor:
    """Views offsets or masks (b, c, H, W) as the compiled kernel reads them.

    It does not look at their size: it takes the first ``c * height * width`` numbers
    of each image. DyHead in mmdet relies on that, with offsets of a larger map.
    """
    size = field.shape[1] * height * width
    if field.shape[2:] == (height, width) or field[0].numel() < size:
        return field
    return field.flatten(1)[:, :size].unflatten(1, (-1, height, width))


def _add_as_read(total: Tensor, grad: Tensor) -> None:
    """Adds the gradient of what :func:`_as_read` gave."""
    if total.shape == grad.shape:
        total += grad
    else:
        total.view(len(total), -1)[:, : grad[0].numel()] += grad.flatten(1)


def _geometry(sizes: dict[str, int]) -> tuple[int, ...]:
    """Returns stride, padding, dilation (y, x) and both groups.

    mmcv names them ``dH``, ``padH``, ``dilationH`` in version 1, and ``stride_h``,
    ``pad_h``, ``dilation_h`` in version 2.
    """
    groups = (sizes['group'], sizes['deformable_group'])
    if 'dH' in sizes:
        names = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW')
    else:
        names = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
    return (*(sizes[name] for name in names), *groups)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **sizes: int,
) -> None:
    """Writes the deformable convolution of ``input``.

    Args:
        input: feature map, (b, c, h, w).
        weight: kernel, (out, c / group, kH, kW).
        offset: offsets in pixels, (b, deformable_group * kH * kW * 2, h', w').
        output: where the result goes, (b, out, h', w').
        columns: not used.
        ones: not used.
        **sizes: see :func:`_geometry`; ``group`` groups of channels are convolved
            apart, ``deformable_group`` groups have their own offsets.
    """
    output.copy_(_forward(input, weight, offset, None, None, _geometry(sizes)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Adds the gradients of input and offsets to ``gradInput`` and ``gradOffset``.

    The other arguments are those of :func:`deform_conv_forward`.
    """
    grads = _backward(gradOutput, input, weight, offset, None, _geometry(sizes))
    gradInput += grads[0]
    gradOffset += grads[2]


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **sizes: int,
) -> None:
    """Adds ``scale`` times the gradient of the kernel to ``gradWeight``.

    The other arguments are those of :func:`deform_conv_forward`.
    """
    # The gradient of the kernel does not depend on the kernel, which the compiled
    # function is not even given; only its shape matters.
    weight = torch.zeros_like(gradWeight)
    grads = _backward(gradOutput, input, weight, offset, None, _geometry(sizes))
    gradWeight += scale * grads[1]


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Writes the deformable convolution of ``input`` with weighted samples.

    Args:
        input: feature map, (b, c, h, w).
        weight: kernel, (out, c / group, kernel_h, kernel_w).
        bias: bias, (out,), used if ``with_bias``.
        ones: not used.
        offset: offsets in pixels,
            (b, deformable_group * kernel_h * kernel_w * 2, h', w').
        mask: weights of the samples, mostly in [0, 1],
            (b, deformable_group * kernel_h * kernel_w, h', w').
        output: where the result goes, (b, out, h', w').
        columns: not used.
        with_bias: add the bias.
        **sizes: as of :func:`deform_conv_forward`.
    """
    offset, mask = (_as_read(field, *output.shape[2:]) for field in (offset, mask))
    bias_used = bias if with_bias else None
    output.copy_(_forward(input, weight, offset, mask, bias_used, _geometry(sizes)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Adds the gradients of all inputs to the tensors ``grad_*`` of their shapes.

    The other arguments are those of :func:`modulated_deform_conv_forward`.
    """
    offset, mask = (_as_read(field, *grad_output.shape[2:]) for field in (offset, mask))
    grads = _backward(grad_output, input, weight, offset, mask, _geometry(sizes))
    grad_input += grads[0]
    grad_weight += grads[1]
    _add_as_read(grad_offset, grads[2])
    _add_as_read(grad_mask, grads[3])
    if with_bias:
        grad_bias += grads[4]
