"""Pastes a texture onto an image, with a gradient for both."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .places import Place, picture_of
from .transforms import IDENTITY, Draw

_MIDDLE = 127.5


def paste(
    image: Tensor,
    texture: Tensor,
    place: Place,
    draw: Draw = IDENTITY,
    region: Tensor | None = None,
) -> Tensor:
    """Shows a texture at a place of an image.

    A texture of another size is resized to the place first (bilinear, with smoothing
    where it shrinks). Light changes the texture; then its homography maps it around the
    centre of the place, with bilinear interpolation, and pixels at its edge keep the
    share of the image that it does not cover; last come blur and noise, which are the
    camera's. Values stay in 0-255. Without a change of place each value is the
    texture's own.

    Args:
        image: (C, H, W) in pixel units of 0-255.
        texture: (C, h, w), of the image's dtype and on its device.
        place: where the texture lies if it is drawn as it is.
        draw: how it is seen.
        region: pixels that may change, bool (1, H, W); None for all.

    Returns:
        The image (C, H, W) with the texture, equal to ``image`` bit for bit where
        nothing of it is seen, and differentiable in both.
    """
    size = place.height, place.width
    if tuple(texture.shape[-2:]) != size:
        texture = F.interpolate(
            texture[None], size, mode='bilinear', antialias=True, align_corners=False
        )[0]
    if draw.gain != 1 or draw.offset:
        texture = (texture - _MIDDLE) * draw.gain + (_MIDDLE + draw.offset)
        texture = texture.clamp(0, 255)
    window = _window(place, draw).cut(picture_of(image))
    if not window.height or not window.width:
        return image
    index = window.window
    behind = image[index]
    if draw.moves:
        seen, share = _warped(texture, place, draw, window)
    else:
        top, left = window.top - place.top, window.left - place.left
        seen = texture[Place(top, left, window.height, window.width).window]
        share = torch.ones_like(seen[:1])
    if draw.noise:
        noise = torch.randn(
            seen.shape, generator=torch.Generator().manual_seed(draw.seed)
        )
        seen = seen + draw.noise * noise.to(seen) * share
    mixed = seen
    if draw.moves:
        mixed = (1 - share) * behind + seen
    if draw.moves or draw.noise:
        mixed = mixed.clamp(0, 255)
    covered = share > 0
    if region is not None:
        covered = covered & region.to(image.device)[index]
    pasted = image.clone()
    pasted[index] = torch.where(covered, mixed, behind)
    return pasted


def _window(place: Place, draw: Draw) -> Place:
    """The pixels on which something of the texture may be seen."""
    if not draw.moves:
        return place
    unit = np.array([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    points = draw.matrix(place.height, place.width) @ unit
    x, y = points[:2] / points[2] + np.array(place.centre)[:, None]
    margin = 1 + _reach(draw.blur)
    top, left = (math.floor(c.min()) - margin for c in (y, x))
    bottom, right = (math.ceil(c.max()) + margin for c in (y, x))
    return Place(top, left, bottom - top, right - left)


def _warped(
    texture: Tensor, place: Place, draw: Draw, window: Place
) -> tuple[Tensor, Tensor]:
    """What a window of an image shows of a texture.

    Returns:
        Its values times the share of each pixel that it covers (C, h, w), and the
        share (1, h, w).
    """
    reach = _reach(draw.blur)
    # With what the blur brings into the window.
    rows = torch.arange(-reach, window.height + reach, dtype=torch.float64)
    columns = torch.arange(-reach, window.width + reach, dtype=torch.float64)
    # From centre to centre of pixels.
    x = columns + (window.left + 0.5 - place.centre[0])
    y = rows + (window.top + 0.5 - place.centre[1])
    back = np.linalg.inv(draw.matrix(place.height, place.width))
    (a, b, c), (d, e, f), (g, h, i) = back.tolist()
    x, y = x[None, :], y[:, None]
    depth = g * x + h * y + i
    grid = torch.stack([(a * x + b * y + c) / depth, (d * x + e * y + f) / depth], -1)
    # Behind the camera there is no patch.
    grid = torch.where(depth[..., None] > 0, grid, torch.full_like(grid, 9))
    layers = torch.cat([texture, torch.ones_like(texture[:1])])
    seen = F.grid_sample(
        layers[None], grid[None].to(texture), mode='bilinear', align_corners=False
    )[0]
    if reach:
        line = torch.arange(-reach, reach + 1, dtype=torch.float64)
        line = torch.exp(-0.5 * (line / draw.blur) ** 2)
        line = (line / line.sum()).to(texture)
        seen = F.conv2d(seen[:, None], line.view(1, 1, -1, 1))
        seen = F.conv2d(seen, line.view(1, 1, 1, -1))[:, 0]
    return seen[:-1], seen[-1:]


def _reach(blur: float) -> int:
    """Pixels beyond which a Gaussian blur is cut off."""
    return math.ceil(3 * blur)
