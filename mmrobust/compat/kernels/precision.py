"""Half precision, for kernels that do not have it on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Returns ``tensor``, of any shape, in float32 if it is in half precision."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor
