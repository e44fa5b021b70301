"""Maps of pictures, measured by what becomes of two ramps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmrobust.geometry import Affine, fit, ramp

SIZE = (90, 140)  # height and width


def warped(matrix: np.ndarray, size: tuple[int, int], dtype: type) -> tuple:
    """Both ramps of a picture moved by OpenCV, and the pixels that it covers."""
    picture = np.zeros((*SIZE, 3), dtype)
    ramps = [ramp(axis, picture) for axis in (1, 0)]
    whole = np.ones(SIZE, np.uint8)
    moved = [
        cv2.warpAffine(np.ascontiguousarray(each), matrix, size[::-1], borderValue=114)
        for each in (*ramps, whole)
    ]
    inside = cv2.warpAffine(
        whole, matrix, size[::-1], flags=cv2.INTER_NEAREST, borderValue=0
    )
    return moved[0][..., 0], moved[1][..., 0], inside.astype(bool)


def fitted(columns: np.ndarray, rows: np.ndarray, inside: np.ndarray) -> Affine | None:
    dark = np.zeros_like(columns)
    return fit(dark, np.where(inside, 254, dark), columns, rows, SIZE)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize(
    ('matrix', 'size'),
    [
        ([[1, 0, 0], [0, 1, 0]], SIZE),
        ([[0.5, 0, 12], [0, 0.5, 30]], (120, 100)),  # a letterbox
        ([[-1, 0, 139], [0, 1, 0]], SIZE),  # a flip
        ([[2.2, 0, -60], [0, 1.7, -40]], (80, 80)),  # a crop
        ([[0, 1, 5], [-1, 0, 150]], (160, 100)),  # a turn
        ([[0.9, 0.3, 10], [-0.2, 1.1, 40]], (170, 200)),
    ],
)
def test_affine_maps_are_found(matrix, size, dtype) -> None:
    """Up to a fifth of a pixel, though a step of brightness is half of one."""
    matrix = np.array(matrix, dtype=float)
    found = fitted(*warped(matrix, size, dtype))
    assert found is not None
    # OpenCV counts from the centre of the first pixel.
    half = np.full(2, 0.5)
    shift = matrix[:, 2] + half - matrix[:, :2] @ half
    assert found.near(Affine(matrix[:, :2], shift), SIZE[1], SIZE[0], pixels=0.2)


def test_what_is_no_affine_map_is_none() -> None:
    columns, rows, inside = warped(np.eye(3)[:2], SIZE, np.uint8)
    whole = np.ones(SIZE, bool)
    assert fitted(columns, rows, whole) is not None
    bent = columns + 10 * np.sin(np.arange(SIZE[1]) / 20)
    assert fitted(bent, rows, whole) is None
    # Padding that is not known as such is no part of the map.
    padded = [np.pad(each, ((0, 40), (0, 0))) for each in (columns, rows)]
    assert fitted(*padded, np.ones((130, 140), bool)) is None
    assert fitted(*padded, np.pad(inside, ((0, 40), (0, 0)))) is not None
    assert fitted(columns * 0, rows, whole) is None


def test_points_and_boxes() -> None:
    turn = Affine(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([10.0, 1.0]))
    assert turn.points(np.array([3, 4])).tolist() == [6, 4]
    assert turn.boxes(np.array([[1, 2, 3, 5]])).tolist() == [[5, 2, 8, 4]]
    both = turn.inverse().points(turn.points(np.array([[3.0, 4.0]])))
    assert np.allclose(both, [[3, 4]])
