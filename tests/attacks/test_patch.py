"""Patch attacks against closed forms, brute force, and what they may not touch."""

from itertools import product

import pytest
import stored
import torch
from attacks.functions import Recorder, generator, normal
from mmdet.registry import DATASETS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmrobust.attacks import Patch
from mmrobust.batch import float_images
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective, loss_mode
from mmrobust.patches import Draw, PatchSize, Place, paste
from torch.nn.functional import pad
import tiny

PLACE = Place(5, 4, 6, 7)


class Scene(Recorder):
    """A function of images of one size with objects and padding."""

    def __init__(self, function, boxes=((3.0, 2, 12, 15),), region=None, count=1):
        super().__init__(function)
        self.boxes = [torch.tensor(boxes).reshape(-1, 4)] * count
        self.regions = [region] * count


def image():
    return torch.randint(0, 256, (3, 24, 20), generator=generator(2)).float()


def weights():
    return normal(3, 24, 20)


def linear(shown):
    return (shown * weights()).sum()


def patched():
    region = torch.zeros(1, 24, 20, dtype=torch.bool)
    region[PLACE.window] = True
    return region


def fixed(**settings):
    return Patch(size=[6, 7], place=[4, 5], **settings)


@pytest.mark.parametrize('eps', [255, 30])
@pytest.mark.parametrize('search', ['apgd', 'pgd'])
def test_the_optimum_of_a_linear_function(search, eps):
    """Each value of the patch as far as the ball and the pixel range let it go."""
    attack = fixed(search=search, eps=eps, num_steps=30)
    (found,) = attack.perturb(Scene(linear), [image()], generator())
    best = (image() + eps * weights().sign()).clamp(0, 255)
    assert torch.equal(found, torch.where(patched(), best, image()))


def test_a_search_without_gradients_reaches_most_of_it():
    oracle = Scene(linear)
    attack = fixed(search='square', objective='total', num_steps=200)
    (found,) = attack.perturb(oracle, [image()], generator())
    best = (weights() * patched()).clamp(min=0).sum() * 255
    best += (weights() * image() * ~patched()).sum()
    before = linear(image())
    assert float(linear(found) - before) > 0.7 * float(best - before)
    assert oracle.grads == 0


@pytest.mark.parametrize('transform', [None, 'rotation=30,scale=0.3,noise=5'])
@pytest.mark.parametrize('search', ['apgd', 'pgd', 'square', 'random', 'grey'])
def test_all_else_stays_as_it_was(search, transform):
    """The rest of the image, padding, and images without an object."""
    region = pad(torch.ones(1, 20, 20, dtype=torch.bool), (0, 0, 0, 4))
    steps = {} if search in ('random', 'grey') else {'num_steps': 20}
    attack = Patch(0.3, search=search, transform=transform, **steps)
    oracle = Scene(linear, ((2, 14, 12, 24),), region, 2)
    oracle.boxes[1] = torch.zeros(0, 4)
    first, second = attack.perturb(oracle, [image(), image()], generator())
    ((place,), none) = attack.patches(oracle, [image(), image()])
    assert (place, none) == (Place(15, 5, 4, 4), [])
    assert torch.equal(second, image())
    changed = (first != image()).any(0)
    assert changed.any()
    assert not changed[20:].any()
    if transform is None:
        changed[place.window[1:]] = False
    # Turned by 30 degrees and 1.3 times as large.
    changed[12:, 2:12] = False
    assert not changed.any()
    assert float(first.min()) >= 0
    assert float(first.max()) <= 255


def test_controls_have_the_places_and_draws_of_the_attack():
    attack = fixed(transform='rotation=90,brightness=60', eot=2, num_steps=2)
    controls = attack.controls()
    assert list(controls) == ['random', 'grey']
    assert all(not each.controls() for each in controls.values())
    patch = attack.describe()['patch']
    shown = {}
    for name, each in {'attack': attack, **controls}.items():
        assert each.describe()['patch'] == patch
        (found,) = each.perturb(Scene(linear), [image()], generator())
        shown[name] = (found != image()).any(0)
    # Where the corners are, and a plain patch is of one colour.
    assert torch.equal(shown['random'], shown['attack'])
    draw = attack.transformations.draw(generator())
    flat = torch.full((3, 6, 7), 128.0)
    (grey,) = controls['grey'].perturb(Scene(linear), [image()], generator())
    assert torch.equal(grey, paste(image(), flat, PLACE, draw))


def test_the_search_climbs_the_mean_over_draws():
    """Of a gain g for the image's half that it likes: the sign of the mean counts."""
    attack = fixed(transform='scale=0.1,contrast=0.9', eot=4, num_steps=4)
    oracle = Scene(linear)
    (found,) = attack.perturb(oracle, [image()], generator())
    assert oracle.grads == 4 * 4
    last = attack.transformations.draw(generator())
    for point in oracle.points:
        assert not torch.equal(point, found)
    # What is left of the image is where the last draw does not show the patch.
    plain = paste(image(), torch.full((3, 6, 7), 128.0), PLACE, last)
    assert torch.equal((plain == image()).all(0), (found == image()).all(0))


def test_a_transformed_patch_has_the_optimum_of_its_mean():
    """Only contrast: the mean of the gains is positive, so that signs decide."""
    attack = fixed(transform={'contrast': 0.5}, eot=2, num_steps=30)
    (found,) = attack.perturb(Scene(linear), [image()], generator())
    gain = attack.transformations.draw(generator()).gain
    texture = torch.where(weights()[PLACE.window] > 0, 255.0, 0.0)
    wanted = paste(image(), texture, PLACE, Draw(gain=gain))
    assert torch.allclose(found, wanted, atol=1e-3)


def test_brute_force_finds_nothing_better(coco):
    """Of a patch of one pixel, over a grid of colours that has all extremes."""
    data = DATASETS.build(ConfigDict(tiny.dataset(coco, False)))
    model, batch = stored.detector('fcos'), pseudo_collate([data[0]])
    (clean,) = float_images(batch, 'cpu')
    with loss_mode(model):
        oracle = LossOracle(model, batch, batch['data_samples'], Objective())
        box = batch['data_samples'][0].gt_instances.bboxes.tensor[0]
        left, top = map(int, (box[:2] + box[2:]) / 2)
        attack = Patch(size=1, place=[left, top], num_steps=10)
        (found,) = attack.perturb(oracle, [clean], generator())
        best = -torch.inf
        for colour in product((0.0, 127.0, 255.0), repeat=3):
            tried = clean.clone()
            tried[:, top, left] = torch.tensor(colour)
            best = max(best, float(oracle.value([tried])))
        assert float(oracle.value([found])) >= best * (1 - 1e-5)
    assert int((found != clean).any(0).sum()) == 1


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(size=0), '0 is no size of a patch'),
        (dict(place='objekt'), "did you mean 'object'"),
        (dict(place='3'), "place='3' of a patch is unknown"),
        (dict(place=[-1, 2]), 'of a patch is unknown'),
        (dict(search='apdg'), "did you mean 'apgd'"),
        (dict(search=dict(type='mmrobust.Patch')), 'is none: give a search'),
        (dict(transform='rotate=3'), "'rotate' is no transformation of patches"),
        (dict(transform='rotation'), 'rotation.* must be a number of at least 0'),
        (dict(transform='rotation=190'), 'rotation.* must be a number from 0 to 180'),
        (dict(eps=0.5), 'looks like the'),
        (dict(num_steps=0), 'num_steps=0'),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        Patch(**settings)


def test_what_does_not_fit_is_refused():
    oracle = Scene(linear)
    with pytest.raises(ConfigError, match='is larger than a picture of 24 x 20'):
        Patch(size='9x30').check_fits(oracle, [image()])
    with pytest.raises(ConfigError, match='lies outside of a picture'):
        Patch(size=4, place=[30, 2]).check_fits(oracle, [image()])
    oracle.boxes = [None]
    with pytest.raises(ConfigError, match='needs upright boxes of objects'):
        Patch().check_fits(oracle, [image()])
    assert Patch(size=4).size == PatchSize(pixels=(4, 4))


def test_any_search_by_its_config():
    attack = Patch(search=dict(type='mmrobust.PGD', step_size=9, num_steps=3))
    assert attack.describe()['step_size'] == 9
    assert attack.describe()['num_steps'] == 3
    assert attack.describe()['patch'] == dict(size='0.1', place='object', transform={})
