"""The package pyautoattack, kept from touching anything outside the attack.

pyautoattack 0.2.0 seeds torch's global generators, takes the interpreter's trace
function away, says what it finds to a silent logger, cannot resume, and does not tell
which member found an adversarial image.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.models import replaced
from .members import PACKAGE_NORMS, SETTINGS, Ball, Member

# Words of the package's warnings, and what the shard files call them.
_FLAGS = {
    'randomized defense': 'randomised',
    'probability distribution': 'probabilities',
    'zero gradient': 'zero_gradient',
    'dynamic defense': 'dynamic',
    'Square Attack has decreased': 'square',
    'classes': 'classes',
}


def load_package() -> Any:
    """Imports pyautoattack.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        return import_module('pyautoattack')
    except ImportError as error:
        raise ConfigError(
            'AutoAttack needs the package pyautoattack, which is not installed: run '
            'pip install "pyautoattack>=0.2.0".'
        ) from error


@dataclass
class MemberResult:
    """The figures of one member on a shard."""

    attacked: int = 0
    broken: int = 0
    seconds: float = 0.0


@dataclass
class Outcome:
    """AutoAttack's answer for a batch.

    Attributes:
        images: (N, C, H, W), the clean image where no member succeeded.
        predictions: (N,), as the package saw them.
        broken_by: per image the member that succeeded, ``'clean'`` where the clean
            image was misclassified, None where all failed.
        members: by name, in their order.
        flags: names of the package's warnings.
    """

    images: Tensor
    predictions: Tensor
    broken_by: Sequence[str | None]
    members: dict[str, MemberResult] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def build(
    model: nn.Module,
    ball: Ball,
    version: str,
    members: Sequence[Member],
    seed: int,
    num_classes: int,
    device: torch.device,
) -> tuple[Any, list[str]]:
    """Builds the package's AutoAttack.

    Args:
        model: images in [0, 1] to logits.
        ball: the threat.
        version: the package's version, which decides the settings.
        members: the attacks to run, possibly fewer than the version's.
        seed: seed of every member.
        num_classes: classes of the model; more targets make the package fail.
        device: of the model.

    Returns:
        The object and sentences about what was changed in it.
    """
    attack = load_package().AutoAttack(
        model,
        norm=PACKAGE_NORMS[ball.norm],
        eps=ball.unit_eps,
        seed=seed,
        version=version,
        attacks=[member.name for member in members] if version == 'custom' else None,
        device=device,
    )
    attack.attacks_to_run = [member.name for member in members]
    attack.member_settings = {m.name: dict(m.settings) for m in members}
    notes = []
    for name, part in (('apgd-t', attack.apgd_targeted), ('fab-t', attack.fab)):
        if name not in attack.member_settings:
            continue
        settings = attack.member_settings[name]
        targets = settings.get('n_target_classes', part.n_target_classes)
        if targets > num_classes - 1:
            notes.append(
                f'{name}: {num_classes - 1} target classes instead of {targets}, '
                'because there are no more'
            )
            settings['n_target_classes'] = num_classes - 1
    for member in members:
        _apply(_part(attack, member.name), attack.member_settings[member.name])
    return attack, notes


def describe(attack: Any) -> dict[str, dict[str, Any]]:
    """Returns the settings with which each member will run."""
    found = {}
    for name in attack.attacks_to_run:
        part = _part(attack, name)
        values = {key: getattr(part, key) for key in SETTINGS[name]}
        if name == 'fab-t':
            values['n_restarts'] = 1  # what the package sets it to when it comes to it
        found[name] = {**values, **attack.member_settings[name]}
    return found


def run(attack: Any, images: Tensor, labels: Tensor) -> Outcome:
    """Attacks a batch as one, and notes what each member does.

    Args:
        attack: from :func:`build`; for one batch only, since the package's objects
            carry settings over from call to call.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
    """
    results = {name: MemberResult() for name in attack.attacks_to_run}
    broken_by: list[str | None] = [None] * len(images)
    running: list[str] = []
    remaining: list[int] = []
    predict = attack.get_logits

    def get_logits(batch: Tensor) -> Tensor:
        # The package calls it once after each member, on what that member returns.
        logits = predict(batch)
        if running:
            name = running.pop()
            wrong = (logits.argmax(dim=1) != labels[remaining]).tolist()
            results[name].broken = sum(wrong)
            for index, success in zip(remaining, wrong, strict=True):
                if success:
                    broken_by[index] = name
            remaining[:] = [i for i in remaining if broken_by[i] is None]
        else:
            # Before: checks, and at last the clean predictions.
            wrong = (logits.argmax(dim=1) != labels).tolist()
            broken_by[:] = ['clean' if one else None for one in wrong]
            remaining[:] = [i for i, one in enumerate(wrong) if not one]
        return logits

    def watched(part: Any, name_of: Callable[[], str]) -> Callable[..., Tensor]:
        perturb = part.perturb

        def call(x: Tensor, y: Tensor) -> Tensor:
            name = name_of()
            _apply(part, attack.member_settings[name])
            started = time.monotonic()
            adversarial = perturb(x, y)
            results[name].attacked = len(x)
            results[name].seconds = time.monotonic() - started
            running.append(name)
            return adversarial

        return call

    fab = attack.fab
    attack.apgd.perturb = watched(attack.apgd, lambda: f'apgd-{attack.apgd.loss}')
    attack.apgd_targeted.perturb = watched(attack.apgd_targeted, lambda: 'apgd-t')
    attack.fab.perturb = watched(fab, lambda: 'fab-t' if fab.targeted else 'fab')
    attack.square.perturb = watched(attack.square, lambda: 'square')
    attack.get_logits = get_logits
    with _listening(attack.logger) as messages, _tracing_kept():
        found, predictions = attack.run_standard_evaluation(
            images, labels, batch_size=len(images)
        )
    # Members that the classes do not suffice for have been dealt with.
    flags = sorted({_flag(message) for message in messages} - {'classes'})
    return Outcome(found, predictions, broken_by, results, flags)


def _part(attack: Any, name: str) -> Any:
    """Returns the object that runs a member; some share one."""
    if name == 'apgd-t':
        return attack.apgd_targeted
    return getattr(attack, name.split('-')[0])


def _apply(part: Any, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        setattr(part, key, value)
    if 'n_iter' in settings and hasattr(part, 'n_iter_orig'):
        # What the constructor derives from it (the checkpoints of the step size).
        steps = settings['n_iter']
        part.n_iter_orig = steps
        part.n_iter_2 = max(int(0.22 * steps), 1)
        part.n_iter_min = max(int(0.06 * steps), 1)
        part.size_decr = max(int(0.03 * steps), 1)


def _flag(message: str) -> str:
    for words, flag in _FLAGS.items():
        if words in message:
            return flag
    return message


@contextmanager
def _listening(logger: logging.Logger) -> Iterator[list[str]]:
    """Collects the warnings of a logger that would be lost or repeated on screen."""
    messages: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            messages.append(record.getMessage())
        return False  # nobody else needs it

    logger.addFilter(note)
    try:
        yield messages
    finally:
        logger.removeFilter(note)


@contextmanager
def _tracing_kept() -> Iterator[None]:
    """Gives debuggers and coverage their trace function back after each check.

    The check also counts calls in a module variable, so that one dynamic model would
    make all later ones suspicious.
    """
    checks: Any = import_module('pyautoattack.checks')
    original = checks.check_dynamic

    def check_dynamic(*args: Any, **kwargs: Any) -> None:
        trace = sys.gettrace()
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))
        try:
            original(*args, **kwargs)
        finally:
            sys.settrace(trace)

    with replaced(checks, 'check_dynamic', check_dynamic):
        yield
