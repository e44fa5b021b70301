"""Momentum, smoothing and diverse inputs, by hand and in what they are for."""

import math

import numpy as np
import pytest
import tiny
import torch
from attacks.functions import Recorder, generator, wavy
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData, PixelData

from mmrobust.attacks import PGD, TransferPGD
from mmrobust.placement import Placement
from mmrobust.attacks.transferable import _Gradients
from mmrobust.batch import float_images
from mmrobust.frame import attack_samples
from mmrobust.objective import LossOracle, Objective, loss_mode
from mmrobust.registry import ATTACKS


def _clean(*shape):
    return torch.randint(60, 190, shape or (3, 9, 7), generator=generator(5)).float()


PLAIN = dict(decay=0, kernel_size=1, diversity_prob=0)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('random_start', [False, True])
@pytest.mark.parametrize('keep_best', [False, True])
def test_with_everything_off_it_is_pgd(norm, random_start, keep_best):
    settings = dict(
        norm=norm,
        eps=30,
        step_size=7,
        num_steps=6,
        restarts=2,
        random_start=random_start,
        keep_best=keep_best,
    )
    expected = PGD(**settings).perturb(Recorder(wavy), [_clean()], generator())
    plain = TransferPGD(**settings, **PLAIN)
    found = plain.perturb(Recorder(wavy), [_clean()], generator())
    assert torch.equal(found[0], expected[0])
    momentum = TransferPGD(**settings, **{**PLAIN, 'decay': 1})
    (other,) = momentum.perturb(Recorder(wavy), [_clean()], generator())
    assert not torch.equal(other, expected[0])


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('decay', [0.5, 1.0])
def test_momentum_by_hand(norm, decay):
    clean, oracle = _clean(), Recorder(wavy)
    attack = TransferPGD(norm, eps=30, num_steps=5, decay=decay, restarts=2)
    (found,) = attack.perturb(oracle, [clean], generator())
    assert len(oracle.points) == 10
    for points in (oracle.points[:5], oracle.points[5:]):  # the second run starts anew
        point, total = points[0], torch.zeros_like(clean)
        for i in range(5):
            assert torch.allclose(point, points[i], atol=1e-3)
            leaf = points[i].clone().requires_grad_()
            (grad,) = torch.autograd.grad(wavy(leaf), leaf)
            total = decay * total + grad / grad.abs().mean()
            if norm == 'linf':
                point = points[i] + 6 * total.sign()
                point = clean + (point - clean).clamp(-30, 30)
            else:
                point = points[i] + 6 * total / total.norm()
                delta = point - clean
                point = clean + delta * min(1, 30 / float(delta.norm()))
            point = point.clamp(0, 255)
    assert torch.allclose(found, point, atol=1e-3)


def test_momentum_survives_gradients_of_any_size():
    for scale in (0.0, 1e-30, 1e30):
        oracle = Recorder(lambda image, scale=scale: (image * scale).sum())
        attack = TransferPGD(eps=10, num_steps=5, decay=1)
        (found,) = attack.perturb(oracle, [_clean()], generator())
        moved = 0 if scale == 0 else 10
        assert torch.allclose(found - _clean(), torch.full((3, 9, 7), float(moved)))


@pytest.mark.parametrize('size', [3, 7, 15])
def test_smoothing_is_the_papers_convolution(size):
    weights = torch.randn(2, 8, 11, generator=generator(2))
    attack = TransferPGD(decay=0, kernel_size=size)
    oracle = _Gradients(
        Recorder(lambda image: (image * weights).sum()), attack, [generator()]
    )
    _, (grad,) = oracle.value_and_grad([torch.zeros(2, 8, 11)])
    radius = size // 2
    sigma = radius / math.sqrt(3)
    kernel = {
        (i, j): math.exp(-(i * i + j * j) / (2 * sigma**2))
        for i in range(-radius, radius + 1)
        for j in range(-radius, radius + 1)
    }
    total = sum(kernel.values())
    for channel, row, column in ((0, 0, 0), (1, 4, 5), (0, 7, 10), (1, 2, 9)):
        expected = sum(
            float(weights[channel, row + i, column + j]) * value / total
            for (i, j), value in kernel.items()
            if 0 <= row + i < 8 and 0 <= column + j < 11
        )
        assert float(grad[channel, row, column]) == pytest.approx(expected, abs=1e-5)


def test_the_gradient_of_a_diverse_input_is_that_of_the_image():
    image, weights = _clean(1, 10, 12), torch.randn(1, 10, 12, generator=generator())
    attack = TransferPGD(decay=0, diversity_prob=1, smallest=0.5)
    oracle = Recorder(lambda image: (image * weights).square().sum())
    _, (grad,) = _Gradients(oracle, attack, [generator()]).value_and_grad([image])
    own = generator()
    torch.rand((), generator=own)  # whether to be diverse
    place = Placement.draw(image, 0.5, own)
    assert torch.equal(oracle.points[0], place.place(image))
    # Finite differences of the whole, in float64.
    for row, column in ((0, 0), (4, 7), (9, 11)):
        shift = torch.zeros(1, 10, 12, dtype=torch.float64)
        shift[0, row, column] = 1e-4
        high, low = (
            oracle.function(place.place(image.double() + sign * shift))
            for sign in (1, -1)
        )
        slope = float(high - low) / 2e-4
        assert float(grad[0, row, column]) == pytest.approx(slope, rel=1e-3, abs=1e-2)


def test_places_fill_the_canvas_and_no_more():
    image, sizes, corners = torch.zeros(3, 40, 60), set(), set()
    draws = generator()
    for _ in range(600):
        place = Placement.draw(image, 0.9, draws)
        assert place.place(image).shape == image.shape
        bottom = place.corner[0] + place.size[0]
        right = place.corner[1] + place.size[1]
        assert min(place.corner) >= 0
        assert (bottom <= 40, right <= 60) == (True, True)
        sizes.add(place.size[0])
        corners.add((bottom == 40, place.corner[0] == 0))
    assert (min(sizes), max(sizes)) == (36, 40)
    assert corners == {(a, b) for a in (True, False) for b in (True, False)}
    tiny_image = Placement.draw(torch.zeros(1, 1, 1), 0.1, draws)
    assert tiny_image.place(torch.ones(1, 1, 1)).shape == (1, 1, 1)


def _picture():
    """A bright rectangle and its mask."""
    mask = np.zeros((1, 40, 60), np.uint8)
    mask[0, 10:30, 12:42] = 1
    return torch.from_numpy(mask[0]).expand(3, 40, 60) * 250.0, mask


@pytest.mark.parametrize('kind', ['tensor', 'boxes'])
@pytest.mark.parametrize('masks', ['bitmap', 'polygon'])
def test_the_ground_truth_follows_the_picture(kind, masks):
    image, mask = _picture()
    boxes = torch.tensor([[12.0, 10.0, 42.0, 30.0]])
    outline = np.array([12, 10, 42, 10, 42, 30, 12, 30], float)
    sample = DetDataSample(
        metainfo=dict(img_id=7, img_shape=(40, 60)),
        gt_instances=InstanceData(
            bboxes=HorizontalBoxes(boxes.clone()) if kind == 'boxes' else boxes.clone(),
            labels=torch.tensor([1]),
            masks=BitmapMasks(mask, 40, 60)
            if masks == 'bitmap'
            else PolygonMasks([[outline]], 40, 60),
        ),
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)),
        gt_sem_seg=PixelData(sem_seg=torch.from_numpy(mask).long()),
    )
    place = Placement((40, 60), (30, 48), (6, 4))
    moved = place.move(sample)
    found = moved.gt_instances.bboxes
    found = found.tensor if kind == 'boxes' else found
    # By hand: widths times 48/60, heights times 30/40, then the corner.
    hand = torch.tensor([[9.6 + 4, 7.5 + 6, 33.6 + 4, 22.5 + 6]])
    torch.testing.assert_close(found, hand)
    bright = (place.place(image)[0] > 190).nonzero()
    edges = [*bright.amin(0).flip(0).tolist(), *(bright.amax(0) + 1).flip(0).tolist()]
    assert np.allclose(edges, hand[0].numpy(), atol=1)
    for area in (moved.gt_instances.masks.to_ndarray()[0], moved.gt_sem_seg.sem_seg[0]):
        rows, columns = np.nonzero(np.asarray(area) == 1)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose(edges, hand[0].numpy(), atol=1)
    assert int(moved.gt_sem_seg.sem_seg[0, 0, 0]) == 255
    assert moved.gt_instances.labels.tolist() == [1]
    assert moved.metainfo == sample.metainfo
    # The sample itself has not moved.
    kept = sample.gt_instances.bboxes
    assert torch.equal(kept.tensor if kind == 'boxes' else kept, boxes)


def test_samples_without_a_place_stay_and_all_come_back_after_an_error():
    oracle = LossOracle(torch.nn.Module(), {}, ['label only'] * 2, Objective())
    samples, place = oracle.samples, Placement((4, 4), (4, 4), (0, 0))

    def fail():
        with oracle.moved([place, None]):
            assert oracle.samples == samples
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert oracle.samples is samples


def test_a_detector_sees_its_objects_where_they_are(coco):
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(tiny.mask_rcnn()))
    data = DATASETS.build(tiny.dataset(coco, True, scale=(144, 108), masks=True))
    batch = pseudo_collate([data[1]])
    samples = attack_samples(batch['data_samples'], 'cpu', 'original')
    (image,) = float_images(batch, 'cpu')
    attack = TransferPGD(eps=8, num_steps=3, diversity_prob=1, kernel_size=3)
    with loss_mode(model):
        oracle = LossOracle(model, batch, samples, Objective())
        seen = []
        loss = oracle._loss

        def spy(part, images):
            seen.append((images[0].detach(), oracle.samples[0]))
            return loss(part, images)

        oracle._loss = spy
        (found,) = attack.perturb(oracle, [image], generator())
    assert (oracle.forwards, oracle.backwards) == (3, 3)
    assert oracle.samples == samples
    assert attack.threat.distance(image, found) == 8
    shapes = {tuple(shown.shape) for shown, _ in seen}
    assert shapes == {tuple(image.shape)}
    boxes = [sample.gt_instances.bboxes.tensor for _, sample in seen]
    assert not torch.equal(boxes[0], samples[0].gt_instances.bboxes.tensor)
    assert not torch.equal(boxes[0], boxes[1])


def test_the_best_iterate_is_judged_by_the_image_itself():
    clean, oracle = _clean(), Recorder(wavy)
    settings = dict(eps=20, num_steps=8, diversity_prob=1)
    (best,) = TransferPGD(**settings, keep_best=True).perturb(
        oracle, [clean], generator()
    )
    assert oracle.values == 8 + 1
    (last,) = TransferPGD(**settings).perturb(Recorder(wavy), [clean], generator())
    assert wavy(best) >= max(wavy(last), wavy(clean))
    plain = Recorder(wavy)
    TransferPGD(eps=20, num_steps=8).perturb(plain, [clean], generator())
    assert (plain.values, len(plain.points)) == (0, 8)


def test_settings_in_the_report():
    attack = ATTACKS.build(dict(type='mmrobust.TransferPGD', eps=16, kernel_size=5))
    assert attack.reads == 'loss'
    settings = attack.describe()
    assert settings['step_size'] == pytest.approx(1.6)  # as in the papers
    assert settings['kernel_size'] == 5
    assert (settings['decay'], settings['diversity_prob']) == (1, 0)


# What they are for: two models that share what they respond to, but each with quirks
# of its own, over a few dozen draws of the quirks.


def _gains(make, pairs=24, **settings):
    """Mean gain of PGD's and the variant's images on a model they have not seen."""
    gains = {'pgd': 0.0, 'variant': 0.0}
    for seed in range(pairs):
        source, target, clean = make(seed)
        for name, extra in (('pgd', PLAIN), ('variant', {**PLAIN, **settings})):
            attack = TransferPGD(eps=8, num_steps=10, **extra)
            (found,) = attack.perturb(Recorder(source), [clean], generator(seed))
            gains[name] += float(target(found) - target(clean)) / pairs
    return gains['pgd'], gains['variant']


def test_diversity_helps_where_models_look_at_other_places():
    def make(seed):
        draws = generator(seed)
        coarse = torch.randn(1, 1, 4, 4, generator=draws)
        template = torch.nn.functional.interpolate(coarse, size=(14, 14))

        def model():
            # Looks for one thing, on a grid of its own.
            top, left = torch.randint(0, 5, (2,), generator=draws).tolist()

            def look(image):
                part = image[None, :, top : top + 42, left : left + 42] - 127.5
                return torch.nn.functional.conv2d(part, template, stride=14).sum()

            return look

        return model(), model(), torch.full((1, 46, 46), 128.0)

    pgd, momentum = _gains(make, decay=1.0)
    diverse = _gains(make, decay=1.0, diversity_prob=0.7, smallest=0.85)[1]
    assert pgd > 0
    assert diverse > 1.05 * max(pgd, momentum)
