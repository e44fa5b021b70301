"""Gradients with respect to original pixels."""

import numpy as np
import pytest
import torch

import mmrobust  # noqa: F401
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from mmrobust.attacks import PGD, TransferPGD
from mmrobust.batch import float_images
from mmrobust.frame import attack_samples
from mmrobust.checks import WatchedOracle
from mmrobust.objective import LossOracle, Objective, loss_mode
from mmrobust.evaluation.original_pixels import Geometry, ResizedOracle, Resizer
from mmrobust.evaluation.picture_pipeline import PicturePipeline

SIZES = [Geometry((12, 9), (7, 14), (8, 16)), Geometry((5, 6), (5, 6), (5, 6))]


class Cubes:
    """f(x) = sum(w * x**3), with a gradient known by hand."""

    def __init__(self):
        torch.manual_seed(1)
        self.weights = [torch.rand(3, *each.input).double() for each in SIZES]
        self.forwards = self.backwards = 0

    def value(self, images):
        assert not any(image.requires_grad for image in images)
        self.forwards += len(images)
        pairs = zip(self.weights, images, strict=True)
        return torch.stack([(w * x**3).sum() for w, x in pairs])

    def value_and_grad(self, images):
        values = self.value(images)
        self.backwards += len(images)
        pairs = zip(self.weights, images, strict=True)
        return values, [3 * w * x**2 for w, x in pairs]


@pytest.fixture
def pictures():
    torch.manual_seed(2)
    return [torch.rand(3, *each.original).double() * 2 for each in SIZES]


def resized(oracle):
    return ResizedOracle(oracle, [Resizer(each, 0.5) for each in SIZES])


def test_the_gradient_is_autograds_of_the_composed_function(pictures):
    cubes = Cubes()
    _, grads = resized(cubes).value_and_grad(pictures)
    for size, picture, weights, grad in zip(
        SIZES, pictures, cubes.weights, grads, strict=True
    ):
        leaf = picture.clone().requires_grad_()
        whole = torch.full((3, *size.input), 0.5, dtype=torch.float64)
        height, width = size.resized
        whole[:, :height, :width] = torch.nn.functional.interpolate(
            leaf[None], size.resized, mode='bilinear'
        )[0]
        (expected,) = torch.autograd.grad((weights * whole**3).sum(), leaf)
        assert torch.allclose(grad, expected)
        assert not picture.requires_grad


def test_the_gradient_is_what_differences_say(pictures):
    oracle, step = resized(Cubes()), 1e-4
    _, grads = oracle.value_and_grad(pictures)
    ways = [torch.randn_like(picture) for picture in pictures]
    ahead, behind = (
        oracle.value([p + s * way for p, way in zip(pictures, ways, strict=True)])
        for s in (step, -step)
    )
    slopes = [(g * way).sum() for g, way in zip(grads, ways, strict=True)]
    torch.testing.assert_close((ahead - behind) / (2 * step), torch.stack(slopes))


def test_counts_and_the_rest_are_the_inner_oracles(pictures):
    cubes = Cubes()
    oracle = resized(cubes)
    oracle.value(pictures)
    oracle.value_and_grad(pictures)
    assert (oracle.forwards, oracle.backwards) == (4, 2)
    assert oracle.weights is cubes.weights
    with pytest.raises(AttributeError, match='unknown'):
        oracle.unknown  # noqa: B018


def detectors(runner, index=1):
    """A detector with one batch, its oracle on original pixels, and the picture."""
    model = runner.model.eval()
    loader = runner.test_dataloader
    batch = loader.collate_fn([loader.dataset[index]])
    samples = attack_samples(batch['data_samples'], 'cpu', 'original')
    follower = PicturePipeline(loader.dataset)
    (sample,) = batch['data_samples']
    # Not the loss of boxes: those of an untrained head are empty, where it has kinks.
    inner = LossOracle(model, batch, samples, Objective('cls'))
    oracle = ResizedOracle(inner, [follower.resizer(sample)])
    return model, batch, oracle, follower.picture(sample.img_id)


def test_a_detectors_gradient_reaches_the_original_pixels(coco, build_runner):
    model, batch, oracle, picture = detectors(build_runner())
    with loss_mode(model):
        values, (grad,) = oracle.value_and_grad([picture])
        # The loss of the pipeline's own, rounded input is nearly the same.
        ordinary = oracle.oracle.value(float_images(batch, 'cpu'))
        assert values.item() == pytest.approx(ordinary.item(), rel=0.02)
        direction = grad.sign()
        step = 0.02  # small, for the network's kinks
        ahead = oracle.value([picture + step * direction])
        behind = oracle.value([picture - step * direction])
    slope = ((ahead - behind) / (2 * step)).item()
    assert slope == pytest.approx(grad.abs().sum().item(), rel=0.05)


def test_an_attack_on_original_pixels_stays_in_their_ball(coco, build_runner):
    model, _, oracle, picture = detectors(build_runner())
    attack = PGD(eps=8, num_steps=5)
    with loss_mode(model):
        before = oracle.value([picture])
        (found,) = attack.perturb(oracle, [picture], torch.Generator().manual_seed(0))
        after = oracle.value([found])
    assert found.shape == picture.shape
    assert (found - picture).abs().max() <= 8
    assert after > before * 1.05


def test_the_ground_truth_follows_a_picture_that_moves_on_its_canvas():
    """Diverse inputs move the original picture; samples are in the input's frame."""
    size = Geometry((80, 60), (120, 90), (128, 96))
    picture = torch.zeros(3, 80, 60)
    picture[:, 20:40, 10:50] = 255
    # 1.5 times as large on the input, where the padding belongs to masks, too.
    mask = np.zeros((1, *size.input), np.uint8)
    mask[:, 30:60, 15:75] = 1
    sample = DetDataSample(
        gt_instances=InstanceData(
            bboxes=HorizontalBoxes(torch.tensor([[15.0, 30, 75, 60]])),
            labels=torch.tensor([0]),
            masks=BitmapMasks(mask, *size.input),
        )
    )
    seen = []

    class Spy(LossOracle):
        def __init__(self):
            self.samples = [sample]

        def value_and_grad(self, images):
            seen.append((images[0], self.samples[0]))
            return images[0].sum()[None], [torch.ones_like(image) for image in images]

    spy = Spy()
    inner = WatchedOracle(spy)
    oracle = ResizedOracle(inner, [Resizer(size)])
    attack = TransferPGD(eps=8, num_steps=5, diversity_prob=1, smallest=0.5)
    attack.keep_best = False
    attack.perturb(oracle, [picture], torch.Generator().manual_seed(0))
    assert spy.samples == [sample]
    corners = set()
    for image, moved in seen:
        bright = (image[0] > 200).nonzero()
        (top, left), (bottom, right) = bright.amin(0), bright.amax(0) + 1
        corners.add((int(top), int(left)))
        box = moved.gt_instances.bboxes.tensor[0]
        shown = torch.tensor([left, top, right, bottom], dtype=torch.float32)
        assert (box - shown).abs().max() <= 2
        ((rows, columns),) = [np.nonzero(moved.gt_instances.masks.masks[0])]
        assert abs(rows.min() - int(top)) <= 2
        assert abs(columns.max() + 1 - int(right)) <= 2
        assert moved.gt_instances.masks.masks.shape[1:] == size.input
    assert len(corners) > 2
