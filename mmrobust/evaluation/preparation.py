"""Builds, checks and tries out attacks before the passes, which may take hours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks import PGD, Attack, Corruption, Patch, RandomNoise
from ..batch import check_batch, check_range, float_images, with_images
from ..checks import examine, path_difference, trial_verdicts
from ..errors import ConfigError, doing, short
from ..frame import FRAME, TO_INPUT, attack_samples
from ..objective import (
    ClassifierOracle,
    NotStackedError,
    Objective,
    check_labels,
    find_seams,
    make_oracle,
    threshold_of,
    weights_for_evaluation,
)
from ..registry import ATTACKS
from ..utils.models import frozen
from ..utils.seeding import attack_generator, derive_seed, seeded
from ..utils.store import StorePart
from .attacker import Attacker
from .box_analysis import BoxAnalysis
from .images import EvaluatedImages, ids_of
from .pass_tables import BENIGN

# Pixel units, of noise on an image on which losses and predictions are compared.
NEAR = 8


def build_attacks(attacks: Any) -> dict[str, Attack]:
    """Builds attacks from their configs by name.

    Raises:
        ConfigError: for what is no set of named attacks.
    """
    if not isinstance(attacks, dict):
        raise ConfigError(
            f'attacks={attacks!r} must be a dict from names to attacks, like '
            "dict(pgd=dict(type='mmrobust.PGD', eps=4))."
        )
    built = {}
    for name, attack in attacks.items():
        if not isinstance(name, str) or not name or set(name) & set('/\\'):
            raise ConfigError(
                f'{name!r} in attacks is no name of an attack: it names keys and files.'
            )
        if name == BENIGN:
            raise ConfigError(f'no attack can be called {BENIGN!r}: rename it.')
        built[name] = ATTACKS.build(attack) if isinstance(attack, dict) else attack
        if not isinstance(built[name], Attack):
            raise ConfigError(
                f'{name}={attack!r} in attacks must be a dict, like '
                "dict(type='mmrobust.PGD', eps=4)."
            )
        _add_controls(name, built, attacks)
    return built


def _add_controls(name: str, built: dict[str, Attack], given: Mapping) -> None:
    """Puts the controls of an attack behind it, unless others have the same."""
    for suffix, control in built[name].controls().items():
        told = control.describe()
        if any(told == each.describe() for each in built.values()):
            continue
        label = f'{name}-{suffix}'
        if label in given:
            raise ConfigError(
                f'{label!r} in attacks is the name of a control of {name!r}: rename it.'
            )
        built[label] = control


def refuse_for_classifiers(
    attacks: Iterable[Attack], space: str, quantize: bool, attack_batch_size: int
) -> None:
    """Refuses what is for detectors alone.

    Raises:
        ConfigError: naming what to use in its place.
    """
    if any(attack.members for attack in attacks):
        raise ConfigError(
            'the ensemble is for detectors: use autoattack for a classifier.'
        )
    if space != 'input' or quantize:
        raise ConfigError(
            'original pixels and pictures of 8 bits are for detectors: leave '
            'space and quantize out for a classifier.'
        )
    if attack_batch_size > 1:
        raise ConfigError(
            'attack_batch_size is for detectors: a classifier attacks the images '
            'of a batch together anyway, so set batch_size of the dataloader.'
        )


def check_ground_truth(
    images: EvaluatedImages, gt_frame: str, metrics: Sequence[Any]
) -> None:
    """Makes sure that an image comes with its boxes, in a frame that is known.

    Args:
        images: of which the first with objects is loaded.
        gt_frame: as the loop has it.
        metrics: of the evaluator.

    Raises:
        ConfigError: if its boxes are missing, if their frame cannot be measured, or if
            it is one that a metric takes for another.
    """
    dataset = images.dataset
    infos: Any = getattr(dataset, 'get_data_info', lambda _: {})
    first = next((i for i in range(len(dataset)) if infos(i).get('instances')), 0)
    part = images.load(first)
    check_batch(part)
    check_range(part['inputs'])
    (sample,) = part['data_samples']
    if 'bboxes' not in sample.get('gt_instances', ()) and 'gt_sem_seg' not in sample:
        raise ConfigError(
            f'the pipeline of {type(dataset).__name__} loads no annotations, and an '
            "attack needs them: add dict(type='LoadAnnotations', with_bbox=True) to it."
        )
    attack_samples([sample], 'cpu', gt_frame)
    scale = sample.get('scale_factor', (1, 1))
    still = sample.get(TO_INPUT) is None and max(scale) == min(scale) == 1
    if sample.get(FRAME) == 'original' or still:
        return
    for metric in metrics:
        if any(kind.__name__ == 'VOCMetric' for kind in type(metric).__mro__):
            raise ConfigError(
                f'{type(metric).__name__} compares predictions, which are in the frame '
                'of the original picture, with boxes that the pipeline has moved with '
                'it: put LoadAnnotations behind the transforms that move the picture.'
            )


def single_attacks(attacks: Iterable[Attack]) -> list[Attack]:
    """Returns the attacks: members of an ensemble, and what corruptions are below."""
    found: list[Attack] = []
    for attack in attacks:
        if isinstance(attack, Corruption):
            attack = attack.inner or attack
        found += attack.members.values() if attack.members else [attack]
    return found


def weigh_classes(
    attacks: Mapping[str, Attack], attacker: Attacker, train_loader: Any, dataset: Any
) -> list[str]:
    """Weights classes for the objectives that need it.

    Args:
        attacks: the attacks by name.
        attacker: of the model.
        train_loader: config of the data whose objects are counted, if there is one.
        dataset: the evaluated one, counted otherwise.

    Returns:
        Notes for the report.
    """
    single = single_attacks(attacks.values())
    waiting = [each for each in single if each.objective.needs_class_weights]
    if not waiting:
        return []
    if attacker.classifier:
        raise ConfigError(
            "the objective 'cwa' is for detectors: use 'total' for a classifier."
        )
    weights, notes = weights_for_evaluation(train_loader, dataset)
    for attack in waiting:
        attack.objective.class_weights = weights
    return notes


def check_objectives(
    attacks: Mapping[str, Attack], attacker: Attacker, images: EvaluatedImages
) -> list[str]:
    """Refuses attacks that the model has no losses for; ensembles go without.

    Returns:
        Notes for the report.

    Raises:
        ConfigError: if the model does not have the losses that an attack names.
    """
    single = [attack for attack in attacks.values() if not attack.members]
    notes = _ask(single, attacker, images)
    for ensemble in attacks.values():
        for name, member in list((ensemble.members or {}).items()):
            try:
                _ask([member], attacker, images)
            except ConfigError as error:
                assert ensemble.members is not None
                if len(ensemble.members) == 1:
                    raise ConfigError(
                        f'no member of the ensemble works: {error}'
                    ) from error
                del ensemble.members[name]
                notes.append(f'the ensemble goes without {name}: {error}')
    return notes


def _ask(
    attacks: Sequence[Attack], attacker: Attacker, images: EvaluatedImages
) -> list[str]:
    """Asks for every named objective once.

    Of a classifier also for the others, whose output and labels may not fit; of a
    detector for one of them, so that a model without losses is found.
    """
    meta = getattr(images.dataset, 'metainfo', {})
    for attack in attacks:
        names = meta.get('thing_classes', meta.get('classes'))
        attack.objective.class_names = names
    named = [
        attack
        for attack in attacks
        if attacker.classifier
        or attack.reads == 'detections'
        or attack.objective.terms is not None
    ]
    named = named or [each for each in attacks if each.asks != 'nothing'][:1]
    if not named:
        return []
    part = images.load(0)
    check_batch(part)
    if not isinstance(attacker.model.data_preprocessor, torch.nn.Module):
        raise ConfigError(
            'model.data_preprocessor of the config is no module that prepares '
            'images: give DetDataPreprocessor, or one of its kind.'
        )
    notes = []
    with attacker.asking(), seeded(attacker.seed, attacker.device):
        samples = attacker.samples(part)
        for attack in named:
            if attack.objective.reads != 'losses':
                notes += _settle_predictions(attack, attacker, part, samples)
            oracle = attacker.oracle(attack, part, samples)
            with doing('asking the model for its losses, before any attack'):
                oracle.value(float_images(part, attacker.device))
            if isinstance(oracle, ClassifierOracle):
                scores = oracle.scores
                check_labels(images.dataset, scores.shape[1])
                if (scores >= 0).all() and (scores.sum(1) - 1).abs().max() < 1e-4:
                    return [
                        'the outputs look like probabilities and not like logits, '
                        'which hides gradients: take the softmax out of the head'
                    ]
    return notes


def _settle_predictions(
    attack: Attack, attacker: Attacker, part: dict, samples: Sequence[Any]
) -> list[str]:
    """Makes an objective do without predictions that have no gradient.

    Returns:
        A sentence for the report, if so.

    Raises:
        ConfigError: if it cannot do without.
    """
    # A model that fails to predict at all is not to be attacked otherwise; SOLO fails
    # if its head is in training mode, as it is when losses are asked for.
    with frozen(attacker.model):
        attacker.predict(part)
    needed = attack.objective.reads == 'count'
    if needed:
        threshold_of(attacker.model)
    reason = _without_gradient(attack, attacker, part, samples)
    if not reason:
        return []
    if needed:
        raise ConfigError(
            f'what the model predicts has no gradient ({reason}), without which the '
            f'objective {attack.objective.name} cannot be searched.'
        )
    attack.objective.without_predictions()
    return [
        'what the model predicts has no gradient, so that the objective ranking reads '
        f'class scores where losses are computed ({reason})'
    ]


def _without_gradient(
    attack: Attack, attacker: Attacker, part: dict, samples: Sequence[Any]
) -> str:
    """Says why predictions have no gradient; nothing if they do."""
    images = float_images(part, attacker.device)
    try:
        oracle = attacker.oracle(attack, part, samples)
        _, grads = oracle.value_and_grad(images)
        if any(grad.any() for grad in grads):
            return ''
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of a model that was not made to be differentiated
        return short(str(error))
    return 'it depends on the image by steps only, or not at all'


def check_patches(
    attacks: Mapping[str, Attack], attacker: Attacker, images: EvaluatedImages
) -> None:
    """Makes sure that patches fit into the first image.

    Raises:
        ConfigError: if not, or if there are no boxes that they could lie at.
    """
    patches = [a for a in single_attacks(attacks.values()) if isinstance(a, Patch)]
    if not patches:
        return
    part = images.load(0)
    with attacker.asking():
        for attack in patches:
            attacker.check_patches(attack, part)


def form_groups(attacker: Attacker, images: EvaluatedImages) -> list[str]:
    """Tries out whether images can be attacked together, if that is asked for.

    Returns:
        A sentence for the report's checks if they cannot.
    """
    if attacker.group_size == 1:
        return []
    part = images.load(0)
    try:
        with attacker.asking():
            samples = attacker.samples(part)
            attacker.seams = find_seams(attacker.model, part, samples)
    except NotStackedError as error:
        attacker.group_size = 1
        return [
            f'images are attacked one by one, since {type(attacker.model).__name__} '
            f'does not allow more of attack_batch_size: {error}'
        ]
    return []


def doubts_of(attacks: Mapping[str, Attack], dataset: Any) -> list[str]:
    """Returns what attacks know of themselves that makes their figures doubtful."""
    return [
        f'{name}: {text}'
        for name, attack in attacks.items()
        for text in attack.doubts(dataset)
    ]


def try_out(
    attacks: Mapping[str, Attack],
    attacker: Attacker,
    images: EvaluatedImages,
    analysis: BoxAnalysis,
    records_of: Callable[[str, Any], StorePart],
    count: int,
) -> list[str]:
    """Makes the trials of :func:`mmrobust.checks.examine` on the first images.

    Args:
        attacks: the attacks by name; without a search there are no trials.
        attacker: of the model.
        images: of which those with objects are taken.
        analysis: scores predictions.
        records_of: gives the records of the trials for a name and settings.
        count: how many images.

    Returns:
        Sentences for the report.
    """
    single = single_attacks(attacks.values())
    searches = [each for each in single if each.asks == 'gradients']
    if not searches or not count:
        return []
    # A trial changes whole images, for which the radius of a patch is none.
    whole = [a for a in searches if not isinstance(a, Patch)] or [PGD()]
    # Of a curve the largest ball, where an attack has to show that it is one.
    balls = [a.threat for a in whole if a.threat.norm == whole[0].threat.norm]
    threat = max(balls, key=lambda ball: ball.eps)
    records = records_of('trials', [threat.norm, threat.eps, analysis.name])
    trials = []
    for index in analysis.with_objects(count):
        ((part, _),) = images.parts(index, images.load(index))
        keys = [f'image {index}']
        trial = records.read(keys, part['inputs'])
        if trial is None:
            with doing(f'trying out image {index} of the dataset'):
                trial = _examine(attacker, part, analysis, threat.norm, threat.eps)
            records.write(keys, trial, part['inputs'])
        trials.append(trial)
    return trial_verdicts(trials)


def _examine(
    attacker: Attacker, part: dict, analysis: BoxAnalysis, norm: str, eps: float
) -> dict[str, Any]:
    samples = attacker.samples(part)

    def oracle() -> Any:
        return make_oracle(attacker.model, part, samples, Objective())

    def score_of(images: list[Tensor]) -> float:
        # Not seeded here: whether that makes a difference is the question.
        (output,) = attacker.predict_unseeded(with_images(part, images))
        return analysis.score(output)

    seed = derive_seed(attacker.seed, ids_of(part)[0], 'trial')
    images = float_images(part, attacker.device)

    def ask() -> None:
        with seeded(seed, attacker.device), attacker.asking():
            oracle().value(near)

    def predict() -> None:
        with seeded(seed, attacker.device):
            attacker.predict_unseeded(with_images(part, near))

    settings = attack_generator(seed), norm, eps, attacker.asking
    found = examine(images, oracle, score_of, *settings)
    # A clean image may pass what cleans images.
    near = RandomNoise(eps=NEAR).perturb(oracle(), images, attack_generator(seed))
    return {**found, 'path': path_difference(attacker.model, ask, predict)}
