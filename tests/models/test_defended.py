"""Defences in front of a detector, in its losses as in its predictions."""

from copy import deepcopy
from functools import partial

import cv2
import numpy as np
import pytest
import stored
import tiny
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope, init_default_scope

from mmrobust import Defended
from mmrobust.batch import float_images, with_images
from mmrobust.errors import ConfigError
from mmrobust.frame import attack_samples
from mmrobust.models import JPEG, BitDepth, MedianFilter, RandomResizing
from mmrobust.objective import (
    LossOracle,
    NotStackedError,
    Objective,
    StackedOracle,
    find_seams,
    loss_mode,
    make_oracle,
)
from mmrobust.placement import Placement
from mmrobust.utils.seeding import seeded

CPU = torch.device('cpu')
SHIFT = Placement((96, 96), (48, 48), (24, 36))


def noise(*shape):
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=draws).float()


def test_bit_depth_is_the_nearest_level():
    image = torch.tensor([0.0, 100.0, 127.0, 128.0, 200.0, 255.0]).view(1, 1, 6)
    assert BitDepth(1)(image).flatten().tolist() == [0, 0, 0, 255, 255, 255]
    assert BitDepth(2)(image).flatten().tolist() == [0, 85, 85, 170, 170, 255]
    assert torch.equal(BitDepth(8)(image + 0.4), image.clamp_max(255))


def test_the_median_is_opencvs():
    image = noise(3, 9, 12)
    picture = np.ascontiguousarray(image.permute(1, 2, 0).numpy().astype(np.uint8))
    wanted = cv2.medianBlur(picture, 3)[1:-1, 1:-1]  # which repeats its border
    found = MedianFilter(3)(image).permute(1, 2, 0)[1:-1, 1:-1]
    assert torch.equal(found, torch.from_numpy(wanted).float())


def test_jpeg_keeps_what_is_plain_and_loses_what_is_fine():
    plain = torch.full((3, 16, 16), 128.0)
    assert torch.equal(JPEG(75)(plain), plain)
    fine = noise(3, 16, 16)
    errors = [(JPEG(quality)(fine) - fine).abs().mean() for quality in (100, 75, 10)]
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: JPEG(101), 'quality=101'),
        (lambda: MedianFilter(2), 'size=2 has no centre'),
        (lambda: BitDepth(9), 'bits=9'),
        (lambda: RandomResizing(0), 'smallest=0'),
        (lambda: Defended(torch.nn.Module(), 'jpeg'), "'j.*' is no step"),
        (lambda: Defended(torch.nn.Module(), JPEG(), bpda='none'), "'none' is no step"),
    ],
)
def test_what_is_no_defence_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.fixture(scope='module')
def detector():
    with DefaultScope.overwrite_default_scope('mmdet'):
        init_default_scope('mmdet')
        return stored.detector('fcos')


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
    root = tiny.make_coco(tmp_path_factory.mktemp('coco'), **stored.SQUARE)
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = DATASETS.build(tiny.dataset(root, True, scale=(96, 96)))
        return pseudo_collate([data[0]])


class Case:
    """A detector behind steps, and an image that it knows."""

    def __init__(self, detector, batch, steps, **settings):
        self.model = Defended(deepcopy(detector), steps, **settings)
        self.batch = batch
        self.images = float_images(self.batch, 'cpu')
        self.samples = attack_samples(self.batch['data_samples'], 'cpu', 'original')

    def predict(self, images=None):
        batch = with_images(self.batch, images or self.images)
        batch['data_samples'] = [sample.clone() for sample in batch['data_samples']]
        with torch.no_grad(), seeded(0, CPU):
            return self.model.test_step(batch)[0].pred_instances

    def ask(self, images=None, objective='total'):
        part = (self.model, self.batch, self.samples, Objective(objective))
        with loss_mode(self.model), seeded(0, CPU):
            values, (grad,) = make_oracle(*part).value_and_grad(images or self.images)
        return float(values), grad


@pytest.fixture
def case(detector, batch):
    return partial(Case, detector, batch)


def half(image):
    """Darker, with a gradient of its own."""
    return image / 2


@pytest.mark.parametrize('objective', ['total', 'ranking'])
def test_losses_and_predictions_see_the_same_pixels(case, objective):
    plain, defended = case([]), case(half)
    dark = [half(plain.images[0])]
    torch.testing.assert_close(
        defended.predict().scores, plain.predict(dark).scores, atol=1e-4, rtol=0
    )
    value, grad = defended.ask(objective=objective)
    wanted, slope = plain.ask(dark, objective)
    assert value == pytest.approx(wanted, rel=1e-4)
    assert float((grad - slope / 2).norm() / slope.norm()) < 1e-3
    assert value != pytest.approx(plain.ask(objective=objective)[0], rel=1e-3)


@pytest.mark.parametrize('objective', ['total', 'ranking'])
def test_gradients_of_steps_that_have_none(case, objective):
    levels = dict(type='mmrobust.BitDepth', bits=3)
    plain, defended = case([]), case(levels)
    coarse = [BitDepth(3)(plain.images[0])]
    _, slope = plain.ask(coarse, objective)

    def close(grad, factor=1.0):
        return float((grad - factor * slope).norm() / slope.norm()) < 1e-3

    assert close(defended.ask(objective=objective)[1])
    # Their own one is zero.
    assert not case(BitDepth(3).forward).ask(objective=objective)[1].any()
    assert close(case(BitDepth(3).forward, bpda='identity').ask(objective=objective)[1])
    assert close(case(levels, bpda=half).ask(objective=objective)[1], 0.5)
    value, grad = case(levels, adaptive=False).ask(objective=objective)
    assert not grad.any()
    assert value == pytest.approx(defended.ask(objective=objective)[0])


class Shrunk(RandomResizing):
    """To one half, at one place."""

    def draw(self, image):
        return SHIFT


def test_what_is_found_in_a_resized_image_is_moved_back(case):
    plain, defended = case([]), case(Shrunk())
    placed = [SHIFT.place(plain.images[0])]
    there, back = plain.predict(placed), defended.predict()
    torch.testing.assert_close(back.scores, there.scores, atol=1e-4, rtol=0)
    wanted = (there.bboxes - torch.tensor([36.0, 24] * 2)) * 2
    torch.testing.assert_close(back.bboxes, wanted, atol=0.05, rtol=0)
    # Losses look for the objects where they are.
    plain.samples = [SHIFT.move(plain.samples[0])]
    assert defended.ask()[0] == pytest.approx(plain.ask(placed)[0], rel=1e-4)


def test_random_resizing_draws_from_seeds_and_has_its_own_gradient(case):
    defended = case(RandomResizing(0.7), adaptive=False)
    first = defended.ask()
    assert first[1].any()
    assert defended.ask()[0] == first[0]
    with loss_mode(defended.model), seeded(0, CPU):
        part = (defended.model, defended.batch, defended.samples, Objective())
        oracle = LossOracle(*part)
        values = {float(oracle.value(defended.images)) for _ in range(3)}
        assert len(values) == 3
        with pytest.raises(NotStackedError):
            find_seams(defended.model, defended.batch, defended.samples)


def test_images_share_passes_behind_a_step_that_draws_nothing(case):
    defended = case(JPEG())
    with loss_mode(defended.model):
        seams = find_seams(defended.model, defended.batch, defended.samples)
        assert seams.heads == ['bbox_head']
        both = dict(inputs=defended.images * 2, data_samples=defended.samples * 2)
        part = (both['data_samples'], Objective(), seams, [0, 0])
        stacked = StackedOracle(defended.model, both, *part)
        value, grad = defended.ask()
        values, grads = stacked.value_and_grad(both['inputs'])
    assert values.tolist() == pytest.approx([value] * 2, rel=1e-3)
    assert float((grads[1] - grad).norm() / grad.norm()) < 0.01


def test_padding_of_a_batch_is_no_part_of_an_image(case):
    """Predictions on an image do not depend on the others' size."""
    defended = case([MedianFilter(), JPEG(50)])
    alone = defended.predict()
    image = defended.images[0]
    batch = dict(defended.batch, inputs=[image, image.new_zeros(3, 128, 160)])
    sample = batch['data_samples'][0]
    other = sample.clone()
    other.set_metainfo(dict(img_shape=(128, 160)))
    batch['data_samples'] = [sample.clone(), other]
    with torch.no_grad():
        data = defended.model.data_preprocessor(batch, False)
        _, given = defended.model.defence.before(defended.model, (), data)
    single = defended.model.data_preprocessor(
        dict(defended.batch, data_samples=[sample.clone()]), False
    )
    _, wanted = defended.model.defence.before(defended.model, (), single)
    assert torch.equal(given['inputs'][0, :, :96, :96], wanted['inputs'][0])
    assert not given['inputs'][0, :, 96:].any()
    assert len(alone)


def test_weights_keep_their_names(case, detector):
    names = set(detector.state_dict())
    defended = case(JPEG())
    assert set(defended.model.state_dict()) == names
    config = dict(
        type='mmrobust.Defended',
        detector=tiny.fcos(),
        preprocess=[dict(type='mmrobust.JPEG'), dict(type='mmrobust.MedianFilter')],
    )
    built = MODELS.build(config)
    assert set(built.state_dict()) == names
    built.load_state_dict(defended.model.state_dict())
    # Copies, as of weights that are averaged, have a defence of their own.
    copy = deepcopy(defended.model)
    copy.defence.steps.clear()
    defended.model = copy
    plain = case([])
    assert torch.equal(defended.predict().scores, plain.predict().scores)


def test_masks_are_not_moved_back(case):
    defended = case(Shrunk())
    found = defended.model.defence
    found.before(defended.model, (), dict(inputs=torch.zeros(1, 3, 96, 96)))
    sample = defended.samples[0].clone()
    sample.pred_instances = sample.gt_instances.clone()
    sample.pred_instances.masks = torch.zeros(len(sample.gt_instances), 96, 96)
    with pytest.raises(ConfigError, match='upright boxes'):
        found.after(defended.model, (), [sample])
