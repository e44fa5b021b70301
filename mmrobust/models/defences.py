"""Published defences that change an image in front of a detector."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..placement import Placement
from ..registry import MODELS
from ..utils.validation import positive_int, share


class _Quantiser(nn.Module):
    """A step whose own gradient is zero or missing; attacks take that of identity."""

    straight_through = True


@MODELS.register_module()
class JPEG(_Quantiser):
    """JPEG compression (Dziugaite et al., arXiv 1608.00853), by OpenCV.

    Args:
        quality: from 1 to 100; 75 is customary.
    """

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        self.quality = positive_int(quality, 'quality')
        if self.quality > 100:
            raise ConfigError(f'quality={quality!r} must be at most 100.')

    def forward(self, image: Tensor) -> Tensor:
        """An image (3, H, W) of 0-255, compressed and read again."""
        picture = image.round().clamp(0, 255).permute(1, 2, 0)
        pixels = np.ascontiguousarray(picture.cpu().numpy().astype(np.uint8))
        quality = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        _, data = cv2.imencode('.jpg', pixels, quality)
        read = torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_COLOR))
        return read.permute(2, 0, 1).to(image)


@MODELS.register_module()
class MedianFilter(_Quantiser):
    """The median of each pixel's neighbours (Xu et al., arXiv 1704.01155).

    Args:
        size: odd side of the neighbourhood in pixels.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.size = positive_int(size, 'size')
        if self.size % 2 == 0:
            raise ConfigError(f'size={size!r} has no centre: take an odd number.')

    def forward(self, image: Tensor) -> Tensor:
        """An image (C, H, W), whose border is mirrored."""
        edge = self.size // 2
        padded = F.pad(image[None], (edge, edge, edge, edge), mode='reflect')
        windows = padded[0].unfold(1, self.size, 1).unfold(2, self.size, 1)
        return windows.flatten(-2).median(-1).values


@MODELS.register_module()
class BitDepth(_Quantiser):
    """Fewer bits per channel (Xu et al., arXiv 1704.01155); 8 are a picture's own.

    Args:
        bits: from 1 to 8.
    """

    def __init__(self, bits: int = 5) -> None:
        super().__init__()
        self.bits = positive_int(bits, 'bits')
        if self.bits > 8:
            raise ConfigError(f'bits={bits!r} must be at most 8.')

    def forward(self, image: Tensor) -> Tensor:
        """An image (C, H, W) of 0-255 at the nearest of ``2 ** bits`` levels."""
        step = 255 / (2**self.bits - 1)
        return (image / step).round().clamp(0, 2**self.bits - 1) * step


@MODELS.register_module()
class RandomResizing(nn.Module):
    """Random resizing and padding (Xie et al., arXiv 1711.01991).

    An image is shrunk to a random size and put at a random place of a grey canvas as
    large as itself; the paper enlarges canvas and image, which not every detector
    takes. What is predicted is moved back. The gradient is its own: average it over
    draws, by ``eot``.

    Args:
        smallest: least share of height and width that is kept, above 0 and at most 1.
    """

    def __init__(self, smallest: float = 0.9) -> None:
        super().__init__()
        self.smallest = share(smallest, 'smallest')

    def draw(self, image: Tensor) -> Placement:
        """Draws a place for an image (C, H, W) from torch's own generator."""
        return Placement.draw(image, self.smallest)
