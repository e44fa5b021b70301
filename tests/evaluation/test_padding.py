"""Evaluations and trainings on pipelines that pad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import tiny
from evaluated import Evaluation, images_of
from mmrobust.attacks import Attack
from mmrobust.region import region_of
from mmrobust.registry import ADVERSARIES, ATTACKS
from mmrobust.training import AttackAdversary
from updates import NO_VALIDATION, epochs, watch_inputs

GREY = 114.0
PAD = dict(type='Pad', size=(140, 136), pad_val=dict(img=(GREY,) * 3))


@ATTACKS.register_module()
class Everywhere(Attack):
    """An attack of somebody who never thought of padding."""

    def perturb(self, oracle, images, generator):
        return [image + self.threat.eps for image in images]


def padded(loader: dict) -> dict:
    """A loader's config with padding after the resizing, which makes 128 x 96."""
    dataset = loader['dataset']
    steps = list(dataset['pipeline'])
    steps.insert([step['type'] for step in steps].index('Resize') + 1, PAD)
    return {**loader, 'dataset': {**dataset, 'pipeline': steps}}


def test_an_evaluation_leaves_padding_alone(evaluate: Evaluation, coco: Path, tmp_path):
    loader = padded(tiny.loader(coco, test=True))
    found = evaluate(
        dict(
            everywhere=dict(type='Everywhere', eps=8),
            noise=dict(type='mmrobust.RandomNoise', eps=8),
            pgd=dict(type='mmrobust.PGD', norm='l2', eps=200, num_steps=2),
            square=dict(type='mmrobust.Square', eps=8, num_queries=5),
        ),
        overrides=dict(test_dataloader=loader),
        save_adv=str(tmp_path / 'adv'),
        num_images=3,
        attack_batch_size=2,
    )
    padding = found['dataset']['padding']
    assert padding['images'] == 3
    area = 140 * 136
    pictures = [128 * 96, 126 * 90, 72 * 96]  # of some three, as they are resized
    shares = [1 - picture / area for picture in pictures]
    assert min(shares) - 1e-6 < padding['share'] < max(shares)
    report = (tmp_path / 'r.md').read_text()
    assert '3 of 3 images have padding from the pipeline' in report
    saved = images_of(tmp_path / 'adv')
    assert len(saved) == 12
    for name, image in saved.items():
        grey = (image == GREY).all(0)
        assert grey[:, 128:].all(), name
        assert grey[96:, 100:].all(), name
        assert not grey[:96, :72].all(0).any(), name


def test_without_padding_the_report_says_nothing(evaluate: Evaluation, tmp_path):
    found = evaluate(dict(noise=dict(type='mmrobust.RandomNoise', eps=8)), num_images=1)
    assert found['dataset']['padding'] is None
    assert 'have padding' not in (tmp_path / 'r.md').read_text()


METHODS: dict[str, dict[str, Any]] = {
    'free': dict(type='mmrobust.FreeAdversary', replays=2),
    'free l2': dict(
        type='mmrobust.FreeAdversary', replays=2, norm='l2', eps=200, carry='run'
    ),
    'pgd': dict(type='mmrobust.PGDAdversary', num_steps=1),
    'mtd': dict(type='mmrobust.MTDAdversary'),
    'apgd': dict(type='mmrobust.APGDAdversary', num_steps=1, random_start=True),
    'own': {},
}


@pytest.mark.parametrize('method', METHODS)
def test_trainings_leave_padding_alone(method, build_runner, coco):
    settings = METHODS[method]
    adversary = (
        AttackAdversary(Everywhere())
        if method == 'own'
        else ADVERSARIES.build(settings)
    )
    runner = build_runner(
        train_dataloader=padded(tiny.loader(coco, test=False, batch_size=3)),
        train_cfg=epochs(1, adversary),
        **NO_VALIDATION,
    )
    adversary = runner.train_loop.adversary
    clean: list[Any] = []
    original = adversary.update

    def update(model, wrapper, batch, iteration):
        clean.append(batch)
        return original(model, wrapper, batch, iteration)

    adversary.update = update
    seen = watch_inputs(runner.model)
    runner.train()
    last = seen[-1]
    changed = 0
    for image, own, sample in zip(
        last, clean[-1]['inputs'], clean[-1]['data_samples'], strict=True
    ):
        region = region_of(sample)
        assert region is not None
        moved = (image != own.float()).any(0, keepdim=True)
        assert not (moved & ~region).any()
        changed += int(moved.sum())
    assert changed
    assert torch.equal(last[0][:, 100:], clean[-1]['inputs'][0][:, 100:].float())
