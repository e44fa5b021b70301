"""Patches: places by hand, pasting against slices, rot90, OpenCV and differences."""

import cv2
import numpy as np
import pytest
import torch
from mmrobust.errors import ConfigError
from mmrobust.patches import (
    Draw,
    PatchSize,
    Place,
    Transformations,
    paste,
    picture_of,
    places,
)
from torch.testing import assert_close

PICTURE = Place(0, 0, 60, 100)


def pictures(height=20, width=24, h=6, w=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.rand(3, *size, generator=generator, dtype=torch.float64) * 255
        for size in ((height, width), (h, w))
    )


def test_a_patch_is_pasted_pixel_by_pixel_and_cut_off_at_the_edge():
    image, texture = pictures()
    for top, left in ((3, 5), (-2, 21), (17, -4)):
        wanted = torch.nn.functional.pad(image, (9, 9, 9, 9))
        wanted[:, top + 9 : top + 15, left + 9 : left + 15] = texture
        found = paste(image, texture, Place(top, left, 6, 6))
        assert torch.equal(found, wanted[:, 9:-9, 9:-9])
    assert paste(image, texture, Place(30, 0, 6, 6)) is image


def test_nothing_changes_outside_the_region():
    image, texture = pictures()
    region = torch.zeros(1, 20, 24, dtype=torch.bool)
    region[:, :, :7] = True
    found = paste(image, texture, Place(3, 4, 6, 6), Draw(angle=30, noise=9), region)
    assert torch.equal(found[..., 7:], image[..., 7:])
    assert not torch.equal(found, image)


@pytest.mark.parametrize('quarters', [1, 2, 3])
def test_quarter_turns_are_those_of_torch(quarters):
    image, texture = pictures()
    found = paste(image, texture, Place(3, 5, 6, 6), Draw(angle=90 * quarters))
    wanted = paste(image, texture.rot90(quarters, (1, 2)), Place(3, 5, 6, 6))
    assert_close(found, wanted, atol=1e-9, rtol=0)


def test_light_is_a_formula_inside_the_pixel_range():
    image, texture = pictures()
    found = paste(image, texture, Place(0, 0, 6, 6), Draw(gain=1.5, offset=20))
    wanted = (127.5 + 1.5 * (texture - 127.5) + 20).clamp(0, 255)
    assert_close(found[:, :6, :6], wanted)


def test_noise_has_its_size_and_its_seed():
    image, grey = torch.zeros(3, 200, 200), torch.full((3, 200, 200), 127.0)
    place = Place(0, 0, 200, 200)
    one, same, other = (
        paste(image, grey, place, Draw(noise=8, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(8, rel=0.02)


def test_a_homography_is_that_of_opencv():
    rows, columns = np.mgrid[0:48, 0:64] / 10
    texture = np.stack([np.sin(rows + k) * np.cos(columns) for k in range(3)])
    texture = 127 + 100 * texture.astype(np.float32)
    drawn = Transformations(scale=0.4, rotation=60, perspective=0.2)
    for seed in range(4):
        draw = drawn.draw(torch.Generator().manual_seed(seed))
        image = torch.full((3, 120, 130), 50.0)
        found = paste(image, torch.from_numpy(texture), Place(35, 30, 48, 64), draw)
        unit = np.array([[2 / 64, 0, 1 / 64 - 1], [0, 2 / 48, 1 / 48 - 1], [0, 0, 1]])
        shift = np.array([[1, 0, 61.5], [0, 1, 58.5], [0, 0, 1]])
        matrix = shift @ draw.matrix(48, 64) @ unit
        layers = [*texture, np.ones((48, 64), np.float32)]
        *seen, share = (
            cv2.warpPerspective(each, matrix, (130, 120)) for each in layers
        )
        wanted = np.stack(seen) + 50 * (1 - share)
        # OpenCV rounds places to 1/32 of a pixel.
        gap = np.abs(found.numpy() - wanted)
        assert gap.mean() < 0.2
        assert np.quantile(gap, 0.99) < 4


def test_blur_is_that_of_opencv():
    image, texture = pictures(40, 40, 12, 12)
    found = paste(image * 0 + 90, texture, Place(14, 14, 12, 12), Draw(blur=1.3))
    sharp = np.pad(texture[0].numpy(), 14)
    share = np.pad(np.ones((12, 12)), 14)
    seen, share = (
        cv2.GaussianBlur(each, (9, 9), 1.3, borderType=cv2.BORDER_CONSTANT)
        for each in (sharp, share)
    )
    assert_close(found[0].numpy(), seen + 90 * (1 - share))


@pytest.mark.parametrize(
    'draw',
    [
        Draw(),
        Draw(1.3, 25, gain=0.8, offset=5, blur=0.8, noise=2),
        Transformations(0.2, 20, 0.2).draw(torch.Generator().manual_seed(0)),
    ],
)
def test_the_gradient_is_that_of_differences(draw):
    image, texture = pictures(9, 10, 4, 4)
    image, texture = 90 + image / 10, 90 + texture / 10
    inputs = [each.requires_grad_() for each in (image, texture)]
    place = Place(3, 4, 4, 4)
    assert torch.autograd.gradcheck(
        lambda *two: paste(*two, place, draw), inputs, fast_mode=True
    )


def test_a_texture_of_another_size_is_resized():
    image, _ = pictures()
    flat = torch.full((3, 50, 50), 7.0, dtype=torch.float64)
    found = paste(image, flat, Place(2, 2, 6, 6))
    assert_close(found[:, 2:8, 2:8], flat[:, :6, :6])


@pytest.mark.parametrize(
    ('box', 'where', 'wanted'),
    [
        # A tenth of 40 x 40 pixels is a square of 12.65.
        ((10, 10, 50, 50), 'object', Place(24, 24, 13, 13)),
        ((0, 0, 4, 16), 'object', Place(7, 1, 3, 3)),
        ((10, 10, 50, 50), 'beside', Place(24, 50, 13, 13)),
        ((55, 10, 95, 50), 'beside', Place(24, 42, 13, 13)),
        ((-20, 10, 20, 50), 'object', Place(26, 6, 9, 9)),
    ],
)
def test_places_of_an_object(box, where, wanted):
    boxes = torch.tensor([box], dtype=torch.float32)
    assert places(boxes, PICTURE, PatchSize(0.1), where) == [wanted]


def test_beside_avoids_other_objects():
    boxes = torch.tensor([[40.0, 20, 50, 30], [50, 15, 70, 35]])
    size = PatchSize.read(8)
    assert places(boxes, PICTURE, size, 'beside')[0] == Place(21, 32, 8, 8)


def test_a_fixed_place_counts_from_the_picture():
    region = torch.zeros(1, 80, 120, dtype=torch.bool)
    region[:, 10:70, 5:105] = True
    picture = picture_of(torch.zeros(3, 80, 120), region)
    assert picture == Place(10, 5, 60, 100)
    found = places(torch.zeros(0, 4), picture, PatchSize.read('8x9'), (2, 3))
    assert found == [Place(13, 7, 8, 9)]
    outside = torch.tensor([[200.0, 200, 210, 210]])
    assert places(outside, picture, PatchSize(0.1)) == []


@pytest.mark.parametrize('value', [0, -1, 1.5, '0x4', 'x', None, True, float('nan')])
def test_sizes_that_are_none(value):
    with pytest.raises(ConfigError, match='is no size of a patch'):
        PatchSize.read(value)


@pytest.mark.parametrize('given', [{'scale': 1}, {'noise': -1}, {'perspective': 0.5}])
def test_strengths_that_are_out_of_range(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        Transformations(**given)


def test_draws_depend_on_the_generator_alone():
    drawn = Transformations(0.1, 10, 0.1, 10, 0.1, 1, 5)
    first, again = (drawn.draw(torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == again
    assert Transformations().draw(torch.Generator()).moves is False
