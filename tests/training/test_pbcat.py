"""PBCAT: its patches by hand, its two radii, and FreeAT where it has none."""

from copy import deepcopy

import pytest
import torch
from updates import assert_same_state, make_batch, make_model, sgd, train, watch_inputs

from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective, loss_mode
from mmrobust.region import REGION
from mmrobust.training import FreeAdversary, PBCATAdversary
from mmrobust.training.pbcat import Square, active_cells, draw_squares

SIZES = [(64, 96), (80, 64)]


def test_the_half_of_the_cells_with_the_largest_gradients_is_active():
    """A square of 16 pixels has cells of 2 x 2, whose means decide."""
    grad = torch.randn(3, 40, 30, generator=torch.Generator().manual_seed(0))
    mask = active_cells(grad, [Square(7, 12, 16)])
    lengths = grad.square().sum(0).sqrt()
    means = {}
    for row in range(8):
        for column in range(8):
            y, x = 12 + 2 * row, 7 + 2 * column
            means[y, x] = float(lengths[y : y + 2, x : x + 2].mean())
    expected = torch.zeros(1, 40, 30, dtype=torch.bool)
    for y, x in sorted(means, key=means.get)[32:]:
        expected[0, y : y + 2, x : x + 2] = True
    assert torch.equal(mask, expected)
    assert int(mask.sum()) == 32 * 4


def test_squares_that_overlap_and_small_ones():
    grad = torch.ones(3, 20, 20)
    mask = active_cells(grad, [Square(0, 0, 6), Square(3, 3, 6)])
    assert int(mask.sum()) == 36 + 36 - 9  # without cells


def test_places_of_patches():
    """A box of 30 x 40 has a diagonal of 50; at 0.5 its patch has a side of 24."""
    box = torch.tensor([[10.0, 20, 40, 60]])

    def draw(boxes=box, share=1.0, size=0.5, jitter=0.0, shape=(100, 90), seed=0):
        draws = torch.Generator().manual_seed(seed)
        return draw_squares(boxes, shape, share, size, jitter, draws)

    assert draw() == [Square(25 - 12, 40 - 12, 24)]
    assert draw(size=0.1) == [Square(23, 38, 4)]  # too small for cells
    assert draw(size=0.03) == []  # of no pixel
    assert draw(shape=(45, 30)) == [Square(6, 21, 24)]  # inside of the image
    assert draw(size=1.0, shape=(20, 90)) == [Square(17, 4, 16)]
    many = box.repeat(1000, 1)
    assert 450 < len(draw(many, share=0.5)) < 550
    centres = torch.tensor([s.x + 12.0 for s in draw(many, jitter=0.2)])
    assert float(centres.std()) == pytest.approx(0.2 * 30, rel=0.1)
    with pytest.raises(ConfigError, match='5 numbers'):
        draw(torch.zeros(1, 5))


def test_without_patches_it_is_free_bit_for_bit():
    settings = dict(eps=6, step_size=5, replays=2, objective='cls+reg', warmup_iters=3)
    first = make_model()
    second = deepcopy(first)
    batches = [make_batch(SIZES, 0), make_batch(SIZES[:1], 1)]
    free = train(FreeAdversary(**settings), first, batches)
    composite = PBCATAdversary(**settings, patch_share=0)
    deltas = train(composite, second, batches)
    assert_same_state(first, second)
    for mine, theirs in zip(deltas, free, strict=True):
        assert all(map(torch.equal, mine, theirs))
    assert set(composite.state_dict(1)) == {'deltas'}


def test_pixels_show_one_of_two_perturbations():
    """Within both radii; as the cells chosen by hand say; and padding stays clean."""
    batch = make_batch(SIZES, 0, low=70, high=180)
    region = torch.ones(1, *SIZES[0], dtype=torch.bool)
    region[:, :, 30:] = False
    batch['data_samples'][0].set_metainfo({REGION: region})
    model = make_model()
    seen = watch_inputs(model)
    adversary = PBCATAdversary(replays=3, patch_share=1, patch_size=0.5, patch_jitter=0)
    wrapper, last = sgd(model), None
    for iteration in range(3):
        before = deepcopy(model)
        adversary.train_step(model, wrapper, batch, iteration)
        patches = adversary.state_dict(iteration)['patches']
        assert max(float(p.abs().max()) for p in patches) <= 8 * (iteration + 1)
        last = before
    shown, clean = seen[-1], [image.float() for image in batch['inputs']]
    samples = batch['data_samples']
    with loss_mode(last):
        oracle = LossOracle(last, batch, samples, Objective('total'), False)
        _, grads = oracle.value_and_grad(clean)
    for place, (image, grad) in enumerate(zip(clean, grads, strict=True)):
        boxes = samples[place].gt_instances.bboxes
        shape, draws = SIZES[place], torch.Generator()
        mask = active_cells(grad, draw_squares(boxes, shape, 1, 0.5, 0, draws))
        change = (shown[place] - image).abs()
        inside = region if place == 0 else torch.ones_like(region[:, :1, :1])
        assert float((change * ~mask).max()) == 4
        # Two updates have moved them, by 8 each at most.
        assert float((change * mask).max()) == 16
        assert (change * ~inside).max() == 0
        assert int((mask & inside).sum()) > 100


@pytest.mark.parametrize('choose', ['update', 'batch'])
def test_it_goes_on_from_any_replay_of_a_batch(choose):
    batch = make_batch(SIZES, 0)
    settings = dict(replays=3, patch_share=1, patch_size=0.5, choose=choose)
    model, adversary = make_model(), PBCATAdversary(**settings, carry='run')
    resumed = None
    wrapper = sgd(model)
    seen = watch_inputs(model)
    for iteration in range(3):
        adversary.train_step(model, wrapper, batch, iteration)
        if iteration == 1:
            state = adversary.state_dict(2)
            resumed = PBCATAdversary(**settings, carry='run')
            resumed.load_state_dict(deepcopy(state))
            model_then, wrapper_then = deepcopy(model), deepcopy(wrapper.state_dict())
    assert len(seen) == {'update': 6, 'batch': 4}[choose]  # passes
    wrapper = sgd(model_then)
    wrapper.load_state_dict(wrapper_then)
    resumed.train_step(model_then, wrapper, batch, 2)
    assert_same_state(model, model_then)
    for key, values in adversary.state_dict(3).items():
        assert all(map(torch.equal, values, resumed.state_dict(3)[key]))


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        (dict(patch_share=1.5), 'patch_share=1.5 must be from 0 to 1'),
        (dict(patch_size=-1), 'patch_size=-1 must'),
        (dict(choose='epoch'), "choose='epoch' is unknown"),
        (dict(patch_eps=-1), 'patch_eps=-1 is negative'),
        (dict(patch_step_size=0.1), 'under a 200th'),
    ],
)
def test_impossible_settings(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        PBCATAdversary(**settings)
