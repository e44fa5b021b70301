"""Attacks pictures with one call: a model, some pictures, and the name of an attack."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..attacks import Attack, attack_preset
from ..errors import ConfigError, doing
from ..evaluation import (
    Attacker,
    EvaluatedImages,
    PicturePipeline,
    check_objectives,
    check_patches,
    form_groups,
    weigh_classes,
)
from ..objective import classes_of, is_classifier
from ..registry import ATTACKS
from ..utils.acceleration import Acceleration
from ..utils.models import bare_model
from ..utils.validation import number, positive_int, whole_number
from .attacked import AttackedImage, AttackedImages
from .pictures import Pictures, meta_of_model

Picture = str | os.PathLike | np.ndarray


def attack(
    model: nn.Module,
    images: Picture | Sequence[Picture] | DataLoader,
    attack: str | Mapping[str, Any] | Attack = 'pgd',
    targets: Sequence[Any] | Any = None,
    *,
    space: str = 'original',
    score_thr: float = 0.3,
    seed: int = 0,
    attack_batch_size: int = 1,
    **options: Any,
) -> AttackedImages:
    """Attacks pictures, and shows what a detector makes of them before and after.

    >>> import mmrobust
    >>> from mmdet.apis import init_detector
    >>> model = init_detector(config, checkpoint, device='cpu')
    >>> found = mmrobust.attack(model, picture, attack='pgd', eps=4, num_steps=5)
    >>> found[0].picture.shape == found[0].adversarial_picture.shape
    True

    Args:
        model: a detector of ``mmdet.apis.init_detector``, whose ``cfg`` has the test
            pipeline that pictures go through.
        images: paths, or uint8 arrays (H, W, 3) in BGR order, of one picture or of
            several; or a data loader of mmdet, whose ground truth is then attacked.
        attack: one of :data:`mmrobust.attacks.ATTACK_NAMES`, as on the command line, a
            config like ``dict(type='mmrobust.PGD', eps=4)``, or an attack.
        targets: the objects of each picture, see :meth:`.Pictures.label`; by default
            what the model itself detects there, which the result says.
        space: ``'original'`` attacks the picture and gives back one of its size;
            ``'input'`` attacks what the network gets, as papers and the command line
            do.
        score_thr: without targets, the least score of a detection that is attacked.
        seed: of the random draws; those of a picture depend on it and its place alone.
        attack_batch_size: how many pictures share the network's passes, see
            :class:`mmrobust.evaluation.AttackTestLoop`.
        **options: of the named attack: ``norm``, ``eps`` in pixel units of 0-255,
            ``num_steps``, ``step_size``, ``restarts``, ``eot`` and so on.

    Returns:
        One result for each picture, which shows itself in a notebook.

    Raises:
        ConfigError: for a model, pictures, targets or options that cannot work.
    """
    bare = _checked(model)
    built = _build(attack, options)
    number(score_thr, 'score_thr', 1)
    if space not in ('original', 'input'):
        raise ConfigError(f"space={space!r} is unknown: choose 'original' or 'input'.")
    training = bare.training
    bare.eval()
    try:
        loader, names, labels_from = _load(bare, images, targets, score_thr)
        attacker = Attacker(
            model,
            seed=whole_number(seed, 'seed'),
            gt_frame='auto',
            fp16=False,
            pixels=PicturePipeline(loader.dataset) if space == 'original' else None,
            space=space,
            quantize=False,
            speed=Acceleration.read(None),
            group_size=positive_int(attack_batch_size, 'attack_batch_size'),
        )
        evaluated = EvaluatedImages(loader, whole_batches=False)
        given = {'attack': built}
        check_patches(given, attacker, evaluated)
        notes = [
            *weigh_classes(given, attacker, None, loader.dataset),
            *check_objectives(given, attacker, evaluated),
            *form_groups(attacker, evaluated),
            *evaluated.notes(),
        ]
        found = list(_attacked(attacker, built, evaluated, names))
    finally:
        bare.train(training)
    meta = getattr(loader.dataset, 'metainfo', {})
    return AttackedImages(found, built.describe(), space, labels_from, notes, meta)


def _checked(model: Any) -> nn.Module:
    """Makes sure that the model is one that can be attacked."""
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f'the model is a {type(model).__name__}: give a detector, as '
            'mmdet.apis.init_detector(config, checkpoint) returns it.'
        )
    bare: nn.Module = bare_model(model)
    if is_classifier(bare):
        raise ConfigError(
            'mmrobust.attack is for detectors: use tools/test.py for a classifier.'
        )
    return bare


def _build(attack: Any, options: dict[str, Any]) -> Attack:
    if isinstance(attack, str):
        attack = attack_preset(attack, **options)
    elif options:
        raise ConfigError(
            f'{", ".join(options)} belong to an attack that is named: put them into '
            'the config of the attack.'
        )
    built = ATTACKS.build(dict(attack)) if isinstance(attack, Mapping) else attack
    if not isinstance(built, Attack):
        raise ConfigError(
            f'attack={attack!r} is none: give a name, a config like '
            "dict(type='mmrobust.PGD', eps=4), or an attack."
        )
    if built.members:
        raise ConfigError(
            'an ensemble chooses its examples by the mAP over all images: use '
            'mmrobust.evaluate for it, or one of its members here, like '
            "attack='ranking'."
        )
    return built


def _load(
    model: Any, images: Any, targets: Any, score_thr: float
) -> tuple[DataLoader, list[str], str]:
    """Makes a loader of the images, with names and where the labels are from."""
    if isinstance(images, DataLoader):
        if targets is not None:
            raise ConfigError(
                'a dataloader has its own ground truth: leave targets out.'
            )
        names = [f'image {at}' for at in range(len(images.dataset))]  # type: ignore[arg-type]
        return images, names, 'the ground truth of the dataloader'
    single = isinstance(images, (str, os.PathLike, np.ndarray))
    if not single and not isinstance(images, Iterable):
        raise ConfigError(
            f'images={images!r} must be paths, uint8 arrays, or a dataloader.'
        )
    images = [images] if single else list(images)
    if not images:
        raise ConfigError('there is no image to attack.')
    cfg = getattr(model, 'cfg', None)
    if cfg is None:
        raise ConfigError(
            'the model has no cfg, which has the pipeline that pictures go through: '
            'build it with mmdet.apis.init_detector, or give a dataloader.'
        )
    pipeline = get_test_pipeline_cfg(cfg.copy())
    meta = meta_of_model(model)
    count = len(meta.get('classes') or ()) or None
    with suppress(ConfigError):  # of heads that do not count classes
        count = count or classes_of(model)
    dataset = Pictures(images, pipeline, meta, count)
    loader: DataLoader = DataLoader(dataset, batch_size=1, collate_fn=pseudo_collate)
    if targets is not None:
        dataset.label([targets] if single and not _is_list(targets) else targets)
        return loader, dataset.names, 'the given targets'
    dataset.label([_confident(model, batch, score_thr) for batch in loader])
    return (
        loader,
        dataset.names,
        f"the model's own detections with scores from {score_thr:g}",
    )


def _is_list(targets: Any) -> bool:
    return isinstance(targets, (list, tuple))


@torch.no_grad()
def _confident(model: Any, batch: dict, score_thr: float) -> InstanceData:
    """Returns what a model detects in an image, as ground truth."""
    with doing('predicting on the clean images'):
        (output,) = model.test_step(batch)
    found = output.get('pred_instances', InstanceData())
    if 'bboxes' not in found:
        raise ConfigError(
            f'{type(model).__name__} predicts no boxes that could be attacked: give '
            'targets.'
        )
    return found[found.scores >= score_thr]


def _attacked(
    attacker: Attacker, attack: Attack, images: EvaluatedImages, names: Sequence[str]
) -> Any:
    """Yields what became of each image, in their order."""
    place = 0
    for _, _, named in images:
        parts = [part for part, _ in named]
        outcomes: dict[int, Any] = {}
        for group in attacker.groups(parts):
            members = [parts[at] for at in group]
            with doing(f'attacking {names[place + group[0]]}'):
                found = attacker.attack_together(attack, members)
            outcomes.update(zip(group, found, strict=True))
        for at, part in enumerate(parts):
            yield _result(attacker, attack, part, outcomes[at], names[place + at])
        place += len(parts)


def _result(
    attacker: Attacker, attack: Attack, part: dict, outcome: Any, name: str
) -> AttackedImage:
    (clean,) = attacker.clean(part)
    (before,) = attacker.predict(part)
    with attacker.asking():
        truth: Sequence[BaseDataElement] = attacker.samples(part)
        oracle = attacker.oracle(attack, part, truth)
        # Both the same way: resizing with a gradient does not round.
        inputs = attacker.shown(oracle, part, [clean])
        losses = [float(oracle.value(each)) for each in (inputs, outcome.inputs)]
    found: Tensor = outcome.found[0]
    return AttackedImage(
        name=name,
        clean=clean.cpu(),
        adversarial=found.detach().cpu(),
        truth=truth[0].cpu(),
        before=before.cpu(),
        after=outcome.outputs[0].cpu(),
        loss_before=losses[0],
        loss_after=losses[1],
        distance=float(attack.threat.distance(clean, found)),
        forwards=outcome.forwards,
        backwards=outcome.backwards,
        seconds=outcome.seconds,
        inputs=(inputs[0].cpu(), outcome.inputs[0].detach().cpu()),
    )
