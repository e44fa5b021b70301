"""Trains and attacks a model, and checks what could go wrong without an error."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmrobust.attacks import PGD
from mmrobust.batch import float_images, split_batch, with_images
from mmrobust.errors import ConfigError
from mmrobust.frame import attack_samples
from mmrobust.objective import LossOracle, Objective, loss_mode, make_oracle
from mmrobust.training import FreeAdversary
from mmrobust.utils.seeding import attack_generator, seeded
from torch import Tensor, nn

from benchmarks.families import tiny_model
from benchmarks.synthetic import tiny_batch

OBJECTIVES = ('total', 'cls', 'reg', 'vanish', 'mislabel', 'ranking')
COLUMNS = ('trains', *OBJECTIVES, 'predicts')
YES, NO, NOT_APPLICABLE, EMPTY, LOSSES = 'yes', 'no', 'n/a', 'empty', 'losses'
# What models say that lack what an objective reads.
_LACKS = (
    'no loss named',
    'has no such head',
    'need heads for the same classes',
    'does not find the classes',
    'cannot follow',
    'cannot be read off',
    'has one only',
    'masks alone',
    'does not detect boxes',
)
EPS = 4
SEED = 7
# The box branch of a fresh head can be dead (all ReLUs off), and then is built anew.
SEEDS = (0, 1, 2)
ZERO = 'the gradient is zero'
NOT_FINITE = 'the gradient is not finite'
TOLERANCE = 1e-5

Row = dict[str, Any]


class CheckError(AssertionError):
    """A property that does not hold; the message goes into the table."""


def require(holds: Any, message: str) -> None:
    """Raises :class:`CheckError` with the message where a check fails."""
    if not holds:
        raise CheckError(message)


def examine(
    model: Any, batch: dict[str, Any], objectives: Sequence[str] = OBJECTIVES
) -> Row:
    """Trains and attacks a model.

    Args:
        model: a detector.
        batch: as its data loader yields it, see :func:`.synthetic.tiny_batch`.
        objectives: what is attacked.

    Returns:
        ``trains``, one entry per objective, and ``predicts``, each ``'yes'``, ``'no'``,
        ``'n/a'`` (the model has no such loss), ``'empty'`` (there is no prediction that
        could be ranked) or ``'losses'`` (as predictions have no gradient, scores are
        ranked where losses are computed), and ``reasons``.
    """
    row: Row = {'reasons': []}
    attacked: list[list[Tensor]] = []

    def attempt(name: str, check: Callable[[], str]) -> None:
        try:
            row[name] = check()
        except Exception as error:
            row[name] = NO
            row['reasons'].append(f'{name}: {in_a_few_words(error)}')
            traceback.print_exc()

    settle(model, batch)
    attempt('trains', partial(check_training, model, batch))
    model.zero_grad(set_to_none=True)
    for objective in objectives:
        attempt(objective, partial(check_attack, model, batch, objective, attacked))
    attempt('predicts', partial(check_prediction, model, batch, attacked))
    return row


def settle(model: Any, batch: dict[str, Any]) -> None:
    """Makes a fresh model more like a trained one.

    No layer is all zero, as the last ones of some heads are, which would hide a wrong
    branch; and BatchNorm has statistics that fit, without which activations double
    from block to block.
    """
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == 'TridentConv':
                # Left as whatever was in memory, for a checkpoint to fill.
                nn.init.kaiming_uniform_(module.weight, a=1)
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    with loss_mode(model), torch.no_grad():
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        norms = [norm for norm in norms if norm.eps > 0]  # else for evaluation only
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        oracle = LossOracle(
            model, batch, samples_of(batch), Objective(), per_image=False
        )
        oracle.value(float_images(batch, 'cpu'))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def check_training(model: Any, batch: dict[str, Any]) -> str:
    """Two updates of FreeAT move weights and perturbation, and leave the batch."""
    model.train()
    optimizer = torch.optim.SGD(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-3
    )
    wrapper = OptimWrapper(optimizer, clip_grad={'max_norm': 1.0})
    adversary = FreeAdversary(eps=EPS, replays=2)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    facts = _facts(batch)
    for iteration in range(2):
        logs = adversary.train_step(model, wrapper, batch, iteration)
        require(torch.isfinite(logs['loss']).all(), 'the training loss is not finite')
        deltas = adversary.state_dict(iteration)['deltas']
        for delta in deltas:
            require(torch.isfinite(delta).all(), 'the perturbation is not finite')
            require(delta.abs().sum() > 0, 'the perturbation stays zero')
            require(delta.abs().max() <= EPS, 'the perturbation leaves the ball')
    require(not _changed(facts, _facts(batch)), "training changes the loader's batch")
    values = dict(model.named_parameters())
    require(
        all(torch.isfinite(value).all() for value in values.values()),
        'weights are not finite',
    )
    require(
        any(not torch.equal(values[name], weights[name]) for name in weights),
        'no weight moves',
    )
    return YES


def check_attack(
    model: Any, batch: dict[str, Any], objective: str, attacked: list[list[Tensor]]
) -> str:
    """PGD finds a gradient and leaves no trace; its images go into ``attacked``."""
    model.eval()
    target = Objective(objective)
    images = float_images(batch, 'cpu')
    before, facts = _state(model), _facts(batch)
    with loss_mode(model), seeded(SEED, torch.device('cpu')):
        samples = samples_of(batch)
        try:
            together = make_oracle(model, batch, samples, target, per_image=False)
            value = check_gradient(together, images)
        except Exception as error:
            lacking = any(text in str(error) for text in _LACKS)
            if isinstance(error, ConfigError) and objective != 'total' and lacking:
                return NOT_APPLICABLE
            if target.reads != 'ranking':
                raise
            if str(error) == ZERO and not _predicted(together, images):
                return EMPTY
            if isinstance(error, CheckError) and str(error) != NOT_FINITE:
                raise
            # As an evaluation does, which says so in its report.
            target.without_predictions()
            together = make_oracle(model, batch, samples, target, per_image=False)
            value = check_gradient(together, images)
        oracle = make_oracle(model, batch, samples, target)
        # Both ways of PGD: the best iterate as in evaluation, the last as in training.
        best = objective == 'total'
        steps = 2 if objective in ('total', 'cls', 'reg') else 1
        attack = PGD(eps=EPS, num_steps=steps, objective=objective, keep_best=best)
        adversarial = attack.perturb(oracle, images, attack_generator(SEED))
    trace = _changed(before, _state(model))
    require(not trace, f'the attack changes {trace}')
    require(not _changed(facts, _facts(batch)), "the attack changes the loader's batch")
    for image, moved in zip(images, adversarial, strict=True):
        require(torch.isfinite(moved).all(), 'an attacked image is not finite')
        require((moved - image).abs().max() <= EPS, 'an attack leaves the ball')
    if not best:  # The best iterate can be the image itself.
        pairs = zip(images, adversarial, strict=True)
        require(not any(torch.equal(*pair) for pair in pairs), 'no pixel moves')
    if objective == 'total':
        wanted = training_loss(model, batch)
        gap = abs(value - wanted) / max(abs(wanted), 1e-12)
        require(
            gap <= TOLERANCE,
            f'loss {value:.6g} in attack mode, {wanted:.6g} in training mode',
        )
    attacked.append(adversarial)
    return LOSSES if target.reads != Objective(objective).reads else YES


def _predicted(oracle: Any, images: Sequence[Tensor]) -> int:
    """Returns how many boxes of images an oracle of predictions ranks."""
    with oracle._predicting(), torch.no_grad():
        data = oracle._data(list(range(len(images))), images)
        found = oracle.model._run_forward(data, mode='predict')
    return sum(len(each.pred_instances) for each in found)


def check_prediction(
    model: Any, batch: dict[str, Any], attacked: list[list[Tensor]]
) -> str:
    """Lets the model predict on every attacked image, alone as in mmdet's test loaders.

    Where it does not even on the clean images, the reason says so.
    """
    model.eval()

    @torch.no_grad()
    def predict(images: list[Tensor]) -> None:
        for single in split_batch(with_images(batch, images)):
            results = model.test_step(single)
            require(len(results) == 1, 'no prediction for an image')

    try:
        predict(float_images(batch, 'cpu'))
    except Exception as error:
        raise CheckError(f'without any attack, {in_a_few_words(error)}') from error
    for images in attacked:
        predict(images)
    return YES if attacked else NO


def check_gradient(oracle: LossOracle, images: Sequence[Tensor]) -> float:
    """Checks that the raw gradient reaches every image, as the oracle hides NaN."""
    with seeded(SEED, torch.device('cpu')):
        leaves = [image.clone().requires_grad_() for image in images]
        loss = oracle._loss(list(range(len(images))), leaves)
        require(torch.isfinite(loss), f'the loss is {loss.item()}')
        require(loss.requires_grad, 'no gradient reaches the image')
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    for grad in grads:
        require(grad is not None, 'no gradient reaches the image')
        require(torch.isfinite(grad).all(), NOT_FINITE)
    require(all(grad.abs().sum() > 0 for grad in grads), ZERO)
    return loss.item()


def training_loss(model: Any, batch: dict[str, Any]) -> float:
    """Computes the loss in training mode, without dropout and with running statistics.

    Denoising terms are left out, as they are random and no part of an objective.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with _deterministic_training(model), seeded(SEED, torch.device('cpu')):
        data = {'inputs': float_images(batch, 'cpu'), 'data_samples': samples_of(batch)}
        with torch.no_grad():
            losses = model(**model.data_preprocessor(data, True), mode='loss')
        kept = {k: v for k, v in losses.items() if 'dn_' not in k}
        loss = model.parse_losses(kept)[0].item()
    model.load_state_dict(state)
    return loss


@contextmanager
def _deterministic_training(model: Any) -> Iterator[None]:
    attributes = ['p', 'dropout', 'dropout_prob', 'drop_prob', 'drop_rate']
    attributes.append('attn_drop_rate')
    changed: list[tuple[Any, str, Any]] = []
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        drops = 'Drop' in type(module).__name__
        for name in attributes if drops else attributes[1:]:
            if isinstance(getattr(module, name, None), float):
                changed.append((module, name, getattr(module, name)))
                setattr(module, name, 0.0)
    preprocessor: Any = model.data_preprocessor
    augments = getattr(preprocessor, 'batch_augments', None)
    preprocessor.batch_augments = None
    try:
        yield
    finally:
        preprocessor.batch_augments = augments
        for module, name, value in changed:
            setattr(module, name, value)


def samples_of(batch: dict[str, Any]) -> list[Any]:
    """Returns the ground truth as an attack gets it."""
    return attack_samples(batch['data_samples'], 'cpu', 'input')


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Copies weights, buffers and flags, by their kind and name."""
    state = {f'buffers: {k}': v.clone() for k, v in model.named_buffers()}
    for name, module in model.named_modules():
        state[f'training flags: {name}'] = torch.tensor(module.training)
    for name, weight in model.named_parameters():
        state[f'weights: {name}'] = weight.detach().clone()
        state[f'requires_grad: {name}'] = torch.tensor(weight.requires_grad)
        state[f'weight gradients: {name}'] = torch.tensor(weight.grad is None)
    return state


def _facts(batch: dict[str, Any]) -> dict[str, Tensor]:
    """Copies images, boxes, labels and masks of a batch."""
    facts = {f'image {i}': image.clone() for i, image in enumerate(batch['inputs'])}
    for i, sample in enumerate(batch['data_samples']):
        truth = sample.gt_instances
        facts[f'boxes {i}'] = getattr(truth.bboxes, 'tensor', truth.bboxes).clone()
        facts[f'labels {i}'] = truth.labels.clone()
        if 'masks' in truth:
            facts[f'masks {i}'] = truth.masks.to_tensor(torch.uint8, 'cpu')
        if 'gt_sem_seg' in sample:
            facts[f'map {i}'] = sample.gt_sem_seg.sem_seg.clone()
    return facts


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> str:
    """Names the first thing that is not as it was, if there is one."""
    for name, value in before.items():
        now = after.get(name)
        if now is None or now.shape != value.shape or not torch.equal(value, now):
            return name
    return ''


def examine_config(path: Path, objectives: Sequence[str] = OBJECTIVES) -> Row:
    """Builds the shrunk model of an mmdet config and examines it."""
    from mmdet.registry import MODELS

    if 'projects' in path.parts:  # which it imports as of the checkout's folder
        sys.path.insert(0, str(Path(*path.parts[: path.parts.index('projects')])))
        if not torch.cuda.is_available():
            # CO-DETR's loss asks for it by name.
            kind: Any = Tensor
            kind.cuda = lambda tensor: tensor
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    # Some models ask how far their training is.
    MessageHub.get_current_instance().update_info('iter', 0)
    MessageHub.get_current_instance().update_info('epoch', 0)
    for seed in SEEDS:
        torch.manual_seed(seed)
        tiny = tiny_model(cfg)
        model = MODELS.build(tiny)
        model.init_weights()
        # As the Runner does without a distributed run.
        model = revert_sync_batchnorm(model)
        row = examine(model, tiny_batch(cfg, tiny), objectives)
        if not row['reasons'] or any(ZERO not in text for text in row['reasons']):
            break
    return row


def in_a_few_words(error: BaseException) -> str:
    """Says in at most one line what went wrong."""
    text = ' '.join(str(error).split())
    if not isinstance(error, CheckError):
        text = f'{type(error).__name__}: {text}'
    return text if len(text) <= 160 else text[:157] + '...'
