"""Losses and gradients that are not finite: skipped, said once, and an end to it."""

import logging
import math
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmrobust.training import FreeAdversary, PGDAdversary, finite_updates as guard
from mmrobust.training.finite_updates import FiniteUpdates
from mmrobust.errors import ConfigError
from torch import nn
from updates import (
    ScalingOptimWrapper,
    checkpoints,
    epochs,
    free,
    iters,
    make_batch,
    make_model,
    pgd,
    sgd,
    watch_inputs,
)

NAN, INF = float('nan'), float('inf')


class Faulty(BaseModel):
    """A layer behind BatchNorm whose losses and gradients break on demand.

    ``faults`` has one entry per forward pass in training mode: None, or what to break:
    the ``'loss'`` (by a constant, so that its gradient is finite), the ``'grad'`` (the
    loss is finite) or the ``'features'`` before the BatchNorm.
    """

    def __init__(self, faults):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 1, 1)
        self.faults = list(faults)

    def forward(self, inputs, data_samples=None, mode=''):
        fault = self.faults.pop(0) if self.norm.training and self.faults else None
        images = torch.stack([i.float() for i in inputs]) / 255
        if fault == 'features':
            images = images * NAN
        features = self.conv(self.norm(images))
        if fault == 'grad':
            features.register_hook(lambda grad: grad * INF)
        loss = features.square().mean()
        return {'loss': loss + NAN if fault == 'loss' else loss}


def faulty(faults):
    torch.manual_seed(1)
    model = Faulty(faults).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    images = [torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8) for _ in range(2)]
    return model, OptimWrapper(optimizer), dict(inputs=images)


def snapshot_of_weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def snapshot(model, wrapper):
    """Weights, BatchNorm statistics and the optimizer's moments."""
    state = snapshot_of_weights(model)
    for number, moments in wrapper.state_dict()['state'].items():
        state.update({f'{number}.{k}': v.clone() for k, v in moments.items()})
    return state


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ------------------------------------------------------------ what is skipped


@pytest.mark.parametrize('fault', ['loss', 'grad', 'features'])
def test_a_faulty_update_is_as_if_it_had_not_been(fault):
    """The bits of weights, statistics and moments; and training goes on from there."""
    states = []
    for faults in ([None, fault, fault, None], [None, None]):
        model, wrapper, batch = faulty(faults)
        with FiniteUpdates(model, wrapper, 5).active():
            for number in range(len(faults)):
                before = snapshot(model, wrapper)
                model.train_step(batch, wrapper)
                if faults[number]:
                    assert_equal(snapshot(model, wrapper), before)
                    assert all(p.grad is None for p in model.parameters())
        assert not {'step', 'update_params'} & set(vars(wrapper))  # as they were
        states.append(snapshot(model, wrapper))
    assert_equal(*states)
    assert states[0]['norm.num_batches_tracked'] == 2


def test_without_the_guard_one_update_destroys_everything():
    """The test above could not tell a fault that does no harm."""
    for fault, survivors in (('features', 0), ('grad', 3), ('loss', None)):
        model, wrapper, batch = faulty([fault])
        before = model.conv.weight.clone()
        model.train_step(batch, wrapper)
        if survivors is None:  # a NaN constant: the update is made, on a senseless loss
            assert not torch.equal(model.conv.weight, before)
            continue
        assert model.conv.weight.isnan().all()
        assert int(model.norm.running_mean.isfinite().sum()) == survivors


def test_an_accumulated_update_is_skipped_whole():
    """One faulty part spoils the sum; statistics are good between the parts too."""
    model, wrapper, batch = faulty([None, 'features', None, None])
    wrapper._accumulative_counts = 2
    with FiniteUpdates(model, wrapper, 5).active():
        before = snapshot(model, wrapper)
        model.train_step(batch, wrapper)
        wrapper.zero_grad()
        wrapper._inner_count = 0
        model.train_step(batch, wrapper)
        for value in model.state_dict().values():  # a checkpoint of this moment
            assert value.isfinite().all()
        model.train_step(batch, wrapper)  # finite, but on top of NaN
        assert_equal(snapshot(model, wrapper), before)
        assert model.conv.weight.grad is None
        model.train_step(batch, wrapper)
        model.train_step(batch, wrapper)
        assert not torch.equal(model.conv.weight, before['conv.weight'])
        assert model.conv.weight.isfinite().all()


@pytest.mark.parametrize('fault', ['loss', 'grad', 'features'])
@pytest.mark.parametrize('clip', [None, dict(max_norm=1.0)])
def test_a_loss_scaler_still_shrinks_its_scale(fault, clip):
    model, plain, batch = faulty([None, fault, fault, None])
    wrapper = ScalingOptimWrapper(plain.optimizer, clip_grad=clip)
    with FiniteUpdates(model, wrapper, 3).active():
        model.train_step(batch, wrapper)
        before = snapshot_of_weights(model)
        model.train_step(batch, wrapper)
        model.train_step(batch, wrapper)
        assert_equal(snapshot_of_weights(model), before)
        assert wrapper.loss_scaler.get_scale() == 256
        model.train_step(batch, wrapper)
    assert not torch.equal(model.conv.weight, before['conv.weight'])
    assert model.conv.weight.isfinite().all()


# ------------------------------------------------------------ what is said


def test_a_burst_is_said_once_and_too_many_in_a_row_stop(monkeypatch):
    said = []
    monkeypatch.setattr(
        guard, 'print_log', lambda text, logger, level: said.append((level, text))
    )
    faults = [None, 'grad', 'loss', None, None, 'features', None]
    model, wrapper, batch = faulty([*faults, 'grad', 'grad', 'grad', None])
    with FiniteUpdates(model, wrapper, 3).active():
        for _ in faults:
            model.train_step(batch, wrapper)
        assert [text.split(':')[0] for _, text in said] == [
            'The loss or its gradients are not finite',
            'Losses and gradients are finite again; updates skipped',
        ] * 2
        assert [text.rsplit(' ', 1)[1] for _, text in said[1::2]] == ['2.', '1.']
        assert {level for level, _ in said} == {logging.WARNING}
        model.train_step(batch, wrapper)
        model.train_step(batch, wrapper)
        before = snapshot(model, wrapper)
        with pytest.raises(ConfigError) as caught:
            model.train_step(batch, wrapper)
    assert len(said) == 5
    sentence = str(caught.value)
    assert 'not finite in 3 updates in a row' in sentence
    for advice in ('learning rate', 'clip_grad', 'eps', 'bfloat16'):
        assert advice in sentence
    assert_equal(snapshot(model, wrapper), before)


# ------------------------------------------------------------ perturbations


@pytest.mark.parametrize(
    ('norm', 'fault', 'objective'),
    [
        ('linf', NAN, 'total'),
        ('linf', INF, 'cls'),
        ('l2', NAN, 'cls'),
        ('l2', -INF, 'total'),
        ('l1', NAN, 'total'),
        ('l1', INF, 'total'),
    ],
)
def test_no_gradient_spoils_the_perturbation_of_free(norm, fault, objective):
    """Of one value of one image: that image's perturbation stays, the other's moves."""
    eps = {'linf': 8, 'l2': 300, 'l1': 3000}[norm]
    model = make_model()
    seen = watch_inputs(model)
    adversary = FreeAdversary(norm, eps, replays=4, carry='run', objective=objective)
    batch = make_batch([(64, 96), (80, 64)], 0)
    wrapper, deltas, broken = sgd(model), [], [False]

    def break_one(module, args):
        image = args[0]['inputs'][0]
        if broken[0]:
            at = torch.zeros_like(image)
            at[1, 5, 7] = 1
            image.register_hook(lambda grad: torch.where(at > 0, fault, grad))

    model.data_preprocessor.register_forward_pre_hook(break_one)
    for update in range(4):
        broken[0] = update == 2
        adversary.train_step(model, wrapper, batch, update)
        deltas.append([d.clone() for d in adversary.state_dict(update + 1)['deltas']])
    assert not torch.equal(deltas[1][0], deltas[0][0])
    assert torch.equal(deltas[2][0], deltas[1][0])
    assert not torch.equal(deltas[2][1], deltas[1][1])
    assert not torch.equal(deltas[3][0], deltas[2][0])
    for images in seen:
        assert all(image.isfinite().all() for image in images)
    for pair in deltas:
        for delta in pair:
            size = dict(linf=INF, l2=2, l1=1)[norm]
            assert torch.linalg.vector_norm(delta, size) <= eps * (1 + 1e-5)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_no_gradient_spoils_the_images_of_pgd(norm):
    """Values of a broken gradient count as zero; the image stays in range and ball."""
    eps = {'linf': 8, 'l2': 300, 'l1': 3000}[norm]
    model = make_model()
    seen = watch_inputs(model)
    adversary = PGDAdversary(norm, eps, num_steps=2, random_start=False)
    batch = make_batch([(64, 96)], 0)

    def break_some(module, args):
        image = args[0]['inputs'][0]
        if image.requires_grad:
            at = torch.arange(image.numel()).view_as(image) % 3
            faults = torch.tensor([NAN, INF])
            image.register_hook(
                lambda grad: torch.where(at < 2, faults[at.clamp(max=1)], grad)
            )

    model.data_preprocessor.register_forward_pre_hook(break_some)
    adversary.train_step(model, sgd(model), batch, 0)
    clean = batch['inputs'][0].float()
    assert len(seen) == 3
    moved = seen[2][0] - clean
    kept = (torch.arange(clean.numel()) % 3 < 2).view_as(clean)
    assert seen[2][0].isfinite().all()
    assert (moved[kept] == 0).all()
    assert (moved[~kept] != 0).any()
    size = dict(linf=INF, l2=2, l1=1)[norm]
    assert torch.linalg.vector_norm(moved, size) <= eps * (1 + 1e-5)


# ------------------------------------------------------------ in the loops


class Breaks(Hook):
    """Makes the classification weights' gradients NaN in given updates."""

    def __init__(self, updates):
        self.updates = updates
        self.lr = []
        self.loss = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weight = runner.model.bbox_head.conv_cls.weight
        if runner.iter in self.updates:
            handle = weight.register_hook(lambda grad: handle.remove() or grad * NAN)


class Weights(Hook):
    """Copies of one weight after each update."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, *args, **kwargs):
        self.seen.append(runner.model.bbox_head.conv_cls.weight.detach().clone())


@pytest.fixture
def build(build):
    """Builds short runs of FCOS with a checkpoint after every second update."""

    def make(kind, adversary, max_skipped=3, **kwargs):
        loop, count = (epochs, 2) if kind == 'Epoch' else (iters, 12)
        hooks = checkpoints(2, by_epoch=False)
        train_cfg = loop(count, adversary, max_skipped=max_skipped)
        return build(train_cfg=train_cfg, default_hooks=hooks, **kwargs)

    return make


FREE = free(eps=4, replays=2, carry='run')
PGD = pgd(eps=4, num_steps=1)


@pytest.mark.parametrize(('kind', 'adversary'), [('Epoch', FREE), ('Iter', PGD)])
def test_a_burst_in_training_and_its_end(build, kind, adversary):
    runner = build(kind, adversary)
    watched = Weights()
    runner.register_hook(Breaks({2, 3, 7}))
    runner.register_hook(watched)
    runner.train()
    changed = [
        not torch.equal(after, before) for before, after in pairwise(watched.seen)
    ]
    total = len(watched.seen)
    assert total == 12
    assert [i + 1 for i, c in enumerate(changed) if not c] == [2, 3, 7]
    for value in runner.model.state_dict().values():
        assert value.isfinite().all()


def test_the_end_leaves_a_checkpoint_to_go_on_from(build, tmp_path):
    runner = build('Iter', FREE)
    runner.register_hook(Breaks(set(range(4, 100))))
    with pytest.raises(ConfigError, match='not finite in 3 updates in a row'):
        runner.train()
    assert runner.iter == 6
    last = tmp_path / 'work' / 'iter_6.pth'  # saved in the burst
    checkpoint = torch.load(last, weights_only=True)
    good = torch.load(tmp_path / 'work' / 'iter_4.pth', weights_only=True)
    for name, value in checkpoint['state_dict'].items():
        assert torch.equal(value, good['state_dict'][name]), name
        assert value.isfinite().all()
    (state,) = checkpoint['mmrobust_training']['ranks']
    assert state['adversary']['deltas']
    assert all(delta.isfinite().all() for delta in state['adversary']['deltas'])
    resumed = build('Iter', FREE, load_from=str(last), resume=True)
    watched = Weights()
    resumed.register_hook(watched)
    resumed.train()
    assert resumed.iter == 12
    assert len(watched.seen) == 6
    assert not torch.equal(
        watched.seen[0], checkpoint['state_dict']['bbox_head.conv_cls.weight']
    )


@pytest.mark.parametrize('value', [0, 'three'])
def test_an_impossible_limit_is_refused(build, value):
    runner = build('Epoch', FREE, max_skipped=value)
    with pytest.raises(ConfigError, match=r'max_skipped=.* must be a whole number'):
        runner.train()


class Counts(nn.Module):
    """Remembers its losses, as some of mmdet's do: in a buffer, a list and a number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer('seen', torch.zeros(()))
        self.history = []

    def forward(self, factor):
        loss = factor * self.weight.sum()
        self.seen = self.seen + loss.detach()  # another tensor
        self.history.append(float(loss))
        return loss


def test_what_losses_remember_is_put_back():
    model = Counts()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with FiniteUpdates(model, wrapper, 5).active():
        wrapper.update_params(model(1.0))
        before = model.weight.detach().clone(), model.seen.clone(), [*model.history]
        for factor in (math.nan, math.inf):
            wrapper.update_params(model(factor))
            assert torch.equal(model.weight, before[0])
            assert torch.equal(model.seen, before[1])
            assert model.history == before[2]
        wrapper.update_params(model(1.0))
    assert model.weight[0].item() == pytest.approx(0.8)
    assert len(model.history) == 2


def test_large_gradients_are_finite():
    """As a scaled loss has them; their squares would overflow."""
    model = Counts()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-25))
    with FiniteUpdates(model, wrapper, 1).active():
        wrapper.update_params(model(1e25))
    assert model.weight[0].item() == pytest.approx(0, abs=1e-6)


def test_what_hooks_do_between_passes_is_kept():
    model = Counts()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    guard = FiniteUpdates(model, wrapper, 5)
    with guard.active():
        wrapper.update_params(model(1.0))
        model.seen.fill_(7)
        guard.remember()
        wrapper.update_params(model(math.nan))
    assert model.seen.item() == 7
