"""FreeAT and PGD-AT, update by update, against loops written by hand in plain torch."""

from copy import deepcopy

import pytest
import tiny
import torch
from mmrobust.training import FreeAdversary, PGDAdversary
from mmrobust.errors import ConfigError
from mmrobust.registry import ADVERSARIES
from mmrobust.utils.seeding import seeded
from torch import nn
from updates import (
    assert_same_state,
    make_batch,
    make_model,
    sgd,
    train,
    watch_inputs,
)


def nearest(delta, height, width):
    """Nearest-neighbour resizing written as indexing."""
    rows = torch.arange(height) * delta.shape[1] // height
    columns = torch.arange(width) * delta.shape[2] // width
    return delta[:, rows][:, :, columns]


def free_by_hand(model, batches, replays, eps, step, terms):
    """FreeAT as in arXiv 1904.12843; returns images seen and deltas per update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    seen, deltas, noise = [], [], [None] * 2
    for batch in batches:
        for _ in range(replays):
            images = []
            for slot, image in enumerate(batch['inputs']):
                if noise[slot] is None:
                    noise[slot] = torch.zeros(image.shape)
                noise[slot] = nearest(noise[slot], *image.shape[1:])
                attacked = torch.clamp(image.float() + noise[slot], 0, 255)
                images.append(attacked.requires_grad_())
            seen.append([image.detach().clone() for image in images])
            data = model.data_preprocessor({**batch, 'inputs': images}, True)
            losses = model(**data, mode='loss')
            total, _ = model.parse_losses(losses)
            if terms is not None:
                target = sum(losses[term] for term in terms)
                grads = torch.autograd.grad(target, images, retain_graph=True)
            optimizer.zero_grad()
            total.backward()
            if terms is None:
                grads = [image.grad for image in images]
            optimizer.step()
            for slot, grad in enumerate(grads):
                moved = noise[slot] + step * torch.sign(grad)
                noise[slot] = torch.clamp(moved, -eps, eps)
            deltas.append([d.clone() for d in noise if d is not None])
    return seen, deltas


# The second batch is smaller and of other sizes, the third meets the second slot again.
BATCH_SIZES = [[(64, 96), (80, 64)], [(96, 80)], [(64, 64), (96, 64)]]


@pytest.mark.parametrize('terms', [None, ['loss_cls', 'loss_bbox']])
@pytest.mark.parametrize(
    ('eps', 'step'), [pytest.param(8, 8, id='papers'), pytest.param(8, 3, id='small')]
)
def test_free_is_the_loop_written_by_hand(terms, eps, step):
    batches = [make_batch(sizes, seed) for seed, sizes in enumerate(BATCH_SIZES)]
    ours = make_model()
    theirs = deepcopy(ours)
    expected_seen, expected = free_by_hand(theirs, batches, 3, eps, step, terms)

    objective = 'total' if terms is None else terms
    adversary = FreeAdversary(
        eps=eps, step_size=step, replays=3, objective=objective, carry='run'
    )
    seen = watch_inputs(ours)
    deltas = train(adversary, ours, batches)

    assert len(seen) == len(deltas) == 9
    for update in range(9):
        for slot, image in enumerate(expected_seen[update]):
            assert torch.equal(seen[update][slot], image), (update, slot)
        assert len(deltas[update]) == len(expected[update])
        for slot, delta in enumerate(expected[update]):
            assert torch.equal(deltas[update][slot], delta), (update, slot)
            assert delta.abs().max() <= eps
    assert_same_state(ours, theirs)
    # The loop above would be empty praise if the perturbation did nothing.
    final = deltas[-1][0]
    assert final.shape == (3, 64, 64)
    assert (final != 0).float().mean() > 0.5
    # The perturbation is carried from one batch to the next, not reset.
    first = batches[1]['inputs'][0].float()
    assert not torch.equal(seen[3][0], first)


@pytest.mark.parametrize('objective', ['total', 'cls'])
def test_gradients_do_not_pile_up(objective):
    """After an update the weights' gradients are gone, as in the stock train step."""
    model = make_model()
    adversary = FreeAdversary(eps=4, replays=2, objective=objective)
    train(adversary, model, [make_batch([(64, 96)], 0)])
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize('adversary', ['free', 'pgd'])
def test_the_batch_is_not_changed(adversary):
    """A replay, or a hook after the update, needs the loader's batch as it was."""
    batch = make_batch([(64, 96), (80, 64)], 0)
    copy = deepcopy(batch)
    made = FreeAdversary(replays=3) if adversary == 'free' else PGDAdversary()
    train(made, make_model(), [batch])
    for image, original in zip(batch['inputs'], copy['inputs'], strict=True):
        assert image.dtype == torch.uint8
        assert torch.equal(image, original)
    for sample, original in zip(
        batch['data_samples'], copy['data_samples'], strict=True
    ):
        assert torch.equal(sample.gt_instances.bboxes, original.gt_instances.bboxes)
        assert torch.equal(sample.gt_instances.labels, original.gt_instances.labels)
        assert sample.metainfo == original.metainfo


def test_free_in_l2_stays_in_its_ball():
    """Also where the carried perturbation is enlarged for a larger image.

    Enlarging by repeating pixels makes the l2 norm grow with the square root of the
    area: without a projection the larger image would get a larger radius than asked.
    """
    eps = 300.0
    sizes = [[(64, 64)], [(128, 160)], [(64, 96)]]
    batches = [make_batch(s, seed, 60, 200) for seed, s in enumerate(sizes)]
    model = make_model()
    seen = watch_inputs(model)
    adversary = FreeAdversary(norm='l2', eps=eps, replays=2, carry='run')
    deltas = train(adversary, model, batches)
    lengths = [
        float((images[0] - batches[update // 2]['inputs'][0].float()).norm())
        for update, images in enumerate(seen)
    ]
    assert lengths[0] == 0
    # Step = radius: the first step reaches the sphere.
    assert lengths[1] == pytest.approx(eps, rel=1e-5)
    for length in lengths:
        assert length <= eps * (1 + 1e-5)
    # A perturbation of the first batch is carried, with what norm it can have.
    assert lengths[2] > 0
    assert max(float(d[0].norm()) for d in deltas) <= eps * (1 + 1e-5)


@pytest.mark.parametrize('objective', ['total', 'cls'])
def test_a_model_that_shields_its_image_is_refused(objective):
    """A backbone under no_grad lets no gradient through to the image.

    Every perturbation would stay zero: normal training under the name of FreeAT.
    """
    model = make_model()
    extract = model.backbone.forward
    model.backbone.forward = torch.no_grad()(extract)
    batch = make_batch([(64, 96)], 0)
    with pytest.raises(ConfigError, match='no gradient reaches the image'):
        FreeAdversary(objective=objective).train_step(model, sgd(model), batch, 0)


def test_free_starts_each_pass_at_zero():
    """carry='epoch' resets at multiples of the updates per pass, 'run' never."""
    batches = [make_batch([(64, 96)], seed) for seed in range(2)]
    for carry, clean in (('epoch', [True, False] * 2), ('run', [True] + [False] * 3)):
        model = make_model()
        seen = watch_inputs(model)
        adversary = FreeAdversary(eps=8, replays=2, carry=carry)
        adversary.updates_per_epoch = 2
        deltas = train(adversary, model, batches)
        found = [
            torch.equal(images[0], batches[update // 2]['inputs'][0].float())
            for update, images in enumerate(seen)
        ]
        assert found == clean, carry
        # Nothing is saved where the next update starts at zero anyway.
        assert [len(d) for d in deltas] == (
            [1, 0, 1, 0] if carry == 'epoch' else [1] * 4
        )


def test_saved_states_do_not_change_afterwards():
    """A checkpoint that is written later, or by another thread, keeps its moment."""
    batch = make_batch([(64, 96)], 0)
    model, adversary = make_model(), FreeAdversary(eps=8, step_size=2, carry='run')
    wrapper = sgd(model)
    adversary.train_step(model, wrapper, batch, 0)
    state = adversary.state_dict(1)
    copy = deepcopy(state)
    adversary.train_step(model, wrapper, batch, 1)
    assert torch.equal(state['deltas'][0], copy['deltas'][0])


def pgd_by_hand(model, batch, eps, step, num_steps):
    """PGD from the clean image on the model as it is deployed."""
    model = deepcopy(model).eval()
    # FCOS with norm_on_bbox scales its boxes by the head's own flag.
    model.training = model.bbox_head.training = True
    clean = [image.float() for image in batch['inputs']]
    current = [image.clone() for image in clean]
    for _ in range(num_steps):
        leaves = [image.clone().requires_grad_() for image in current]
        data = model.data_preprocessor({**batch, 'inputs': leaves}, False)
        total, _ = model.parse_losses(model(**data, mode='loss'))
        grads = torch.autograd.grad(total, leaves)
        for slot, grad in enumerate(grads):
            moved = current[slot] + step * grad.sign()
            moved = torch.clamp(moved, clean[slot] - eps, clean[slot] + eps)
            current[slot] = torch.clamp(moved, 0, 255)
    return current


def test_pgd_is_the_loop_written_by_hand():
    """Inner steps on the deployed function, then one stock update on their result."""
    batch = make_batch([(64, 96), (80, 64)], 0)
    ours = make_model()
    # A function with statistics that differ from those of the batch.
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    theirs = deepcopy(ours)
    attacked = pgd_by_hand(theirs, batch, eps=8, step=3, num_steps=3)
    theirs.train_step({**batch, 'inputs': attacked}, optim_wrapper=sgd(theirs))

    seen = watch_inputs(ours)
    adversary = PGDAdversary(eps=8, step_size=3, num_steps=3, random_start=False)
    train(adversary, ours, [batch])
    assert len(seen) == 4  # three inner steps and the update, nothing to pick the best
    for slot in range(2):
        assert torch.equal(seen[3][slot], attacked[slot])
        assert not torch.equal(attacked[slot], batch['inputs'][slot].float())
    # Weights and BatchNorm statistics moved by the one update alone.
    assert_same_state(ours, theirs)
    counts = {int(b) for n, b in ours.named_buffers() if n.endswith('tracked')}
    assert counts == {1}


def test_pgd_leaves_every_flag_as_it_was():
    """Frozen stages stay frozen, and modules in eval mode stay in it."""
    config = tiny.fcos()
    config['backbone'].update(frozen_stages=1, norm_eval=True)
    model = make_model(config)
    flags = {n: (m.training, type(m)) for n, m in model.named_modules()}
    grads = {n: p.requires_grad for n, p in model.named_parameters()}
    assert len(set(grads.values())) == 2
    train(PGDAdversary(num_steps=1), model, [make_batch([(64, 96)], 0)])
    assert {n: (m.training, type(m)) for n, m in model.named_modules()} == flags
    assert {n: p.requires_grad for n, p in model.named_parameters()} == grads


def start_of(adversary, iteration):
    """The image that the first inner step sees: the random start."""
    model = make_model()
    seen = watch_inputs(model)
    adversary.train_step(model, sgd(model), make_batch([(64, 96)], 0), iteration)
    return seen[0][0]


def test_the_random_start_depends_on_seed_and_iteration_only(monkeypatch):
    adversary = PGDAdversary(eps=8, num_steps=1)
    torch.manual_seed(5)
    start = start_of(adversary, 7)
    clean = make_batch([(64, 96)], 0)['inputs'][0].float()
    assert 0 < (start - clean).abs().max() <= 8
    # Draws in between (a sampler's, a validation's) and a restart change nothing.
    torch.rand(100)
    with seeded(3, torch.device('cpu')):
        torch.rand(10)
    assert torch.equal(start_of(PGDAdversary(eps=8, num_steps=1), 7), start)
    assert not torch.equal(start_of(adversary, 8), start)
    monkeypatch.setattr('mmrobust.training.inner_attack.get_rank', lambda: 1)
    assert not torch.equal(start_of(adversary, 7), start)
    monkeypatch.undo()
    torch.manual_seed(6)
    assert not torch.equal(start_of(adversary, 7), start)


@pytest.mark.parametrize('kind', ['free', 'pgd'])
def test_warm_up_follows_its_line(kind):
    """eps grows by eps / 4 per update; the recorded perturbations fill it."""
    batch = make_batch([(64, 96)], 0, 60, 200)  # far from the ends of the range
    model = make_model()
    seen = watch_inputs(model)
    if kind == 'pgd':
        adversary = PGDAdversary(eps=8, num_steps=1, random_start=False, warmup_iters=4)
        updates = seen[1::2]
    else:
        adversary = FreeAdversary(eps=8, replays=1, carry='run', warmup_iters=4)
        updates = seen
    train(adversary, model, [batch] * 6)
    updates = seen[1::2] if kind == 'pgd' else seen
    clean = batch['inputs'][0].float()
    largest = [float((images[0] - clean).abs().max()) for images in updates]
    if kind == 'pgd':
        assert largest == [2, 4, 6, 8, 8, 8]
    else:
        # FreeAT shows what the update before has left: never more than its radius.
        assert largest == [0, 2, 4, 6, 8, 8]
    assert [adversary.threat_at(i).eps for i in range(6)] == [2, 4, 6, 8, 8, 8]


@pytest.mark.parametrize('make', [FreeAdversary, PGDAdversary])
@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        (dict(objective='cwa'), "the objective 'cwa' is an attack for evaluation"),
        (dict(eps=-1), 'eps=-1 is negative or not finite'),
        (dict(eps=float('nan')), 'negative or not finite'),
        (dict(eps=float('inf')), 'negative or not finite'),
        (dict(eps=0.016), 'looks like the \\[0, 1\\] scale: write eps=4.08'),
        (dict(eps='four'), "eps='four' is not a size"),
        (dict(eps=[4]), 'is not a size'),
        (dict(norm='l3'), "norm='l3' is unknown: choose one of linf, l2, l1"),
        (dict(norm='l2'), 'eps=4 is below 10 pixel units in l2'),
        (dict(step_size=-1), 'step_size=-1 is negative'),
        (dict(step_size=0), 'hardly move'),
        (dict(step_size='x'), "step_size='x' is not a size"),
        (dict(step_size=float('nan')), 'negative or not finite'),
        (dict(step_size=[1]), 'is not a size'),
        (dict(share=0), 'share=0 must be above 0 and at most 1'),
        (dict(share=1.5), 'share=1.5 must be above 0'),
        (dict(class_weighting='image'), "choose 'batch', 'dataset' or None"),
        (dict(warmup_iters=-1), 'warmup_iters=-1 must not be negative'),
        (dict(objective='loss'), "objective='loss' is unknown"),
        (dict(objective=[]), 'is empty'),
    ],
)
def test_impossible_settings_are_refused(make, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(**settings)


@pytest.mark.parametrize(
    ('kind', 'settings', 'sentence'),
    [
        (
            'FreeAdversary',
            dict(replays=0),
            'replays=0 must be a whole number of at least 1',
        ),
        ('FreeAdversary', dict(replays=1.5), 'replays=1.5 must be a whole number'),
        ('FreeAdversary', dict(replays='x'), "replays='x' must be a whole number"),
        ('FreeAdversary', dict(carry='batch'), "carry='batch' is unknown"),
        ('PGDAdversary', dict(num_steps=0), 'num_steps=0 must be a whole number'),
        ('PGDAdversary', dict(num_steps='x'), "num_steps='x' must be a whole number"),
    ],
)
def test_impossible_settings_of_one_kind(kind, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ADVERSARIES.build(dict(type=f'mmrobust.{kind}', **settings))


def test_an_objective_that_the_model_does_not_have_is_refused():
    """The message lists the losses that there are."""
    adversary = FreeAdversary(objective=['loss_mask'])
    model = make_model()
    with pytest.raises(ConfigError, match='has loss_cls, loss_bbox, loss_centerness'):
        adversary.train_step(model, sgd(model), make_batch([(64, 96)], 0), 0)


def test_descriptions_carry_what_defines_the_training():
    pgd = PGDAdversary(norm='l2', eps=300, num_steps=5, warmup_iters=9)
    assert pgd.describe() == dict(
        type='PGDAdversary',
        norm='l2',
        eps=300.0,
        objective='total',
        replays=1,
        warmup_iters=9,
        share=1.0,
        class_weighting=None,
        step_size=150.0,
        num_steps=5,
        random_start=True,
        keep_best=False,
    )
