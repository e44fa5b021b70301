"""Measures what adversarial training and attacks cost, as ratios within one run.

Training: a FreeAT update against a stock update of the same batch; for a classifier
also APGD-AT against the passes it cannot do without. Attack: a PGD step against the
bare forward and input-only backward pass. The two sides of a ratio alternate, so that a
machine whose speed drifts slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmrobust import cli
from mmrobust.attacks import PGD
from mmrobust.batch import attack_samples, float_images, split_batch, with_images
from mmrobust.classification import classifier_samples, is_classifier, make_oracle
from mmrobust.errors import ConfigError
from mmrobust.engine import APGDAdversary, FreeAdversary
from mmrobust.objective import Objective, loss_mode
from torch import Tensor

STEPS = 10


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument('config', help='config of a detector or classifier')
    parser.add_argument('--repeats', type=int, default=10, help='measurements per side')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument('--work-dir', default='work_dirs/benchmark')
    cli.add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    """Measures and prints a Markdown table."""
    args = parse_args()
    cfg = cli.load_config(args)
    cfg.resume, cfg.load_from = False, None
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'--device {args.device!r} cannot be used ({reason}): give cpu or cuda.'
        ) from error
    if args.repeats < 1:
        raise ConfigError(f'--repeats {args.repeats} must be at least 1.')
    runner = Runner.from_cfg(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    runner.model.to(args.device)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    batch = next(iter(loader))
    rows = [*training_rows(runner, batch, args), *attack_rows(runner, batch, args)]
    if is_classifier(runner.model):
        rows += inner_attack_rows(runner, batch, args)
    print(
        f'\n{args.config}, {args.device}, {torch.get_num_threads()} threads, ', end=''
    )
    print(f'batch {len(batch["inputs"])} of {tuple(batch["inputs"][0].shape)}\n')
    print('| what | seconds | ratio |\n| --- | ---: | ---: |')
    base = rows[0][1]
    for name, seconds in rows:
        if name.startswith('bare'):
            base = seconds
        print(f'| {name} | {seconds:.4f} | {seconds / base:.3f} |')


def training_rows(
    runner: Runner, batch: dict, args: argparse.Namespace
) -> list[tuple[str, float]]:
    """Seconds of a stock update, of the same with an input gradient, and of FreeAT."""
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    model, device = runner.model.train(), args.device
    adversary = FreeAdversary(eps=4, replays=4, carry='run')
    stock = with_images(batch, float_images(batch, device))

    def with_gradient() -> None:
        images = [image.requires_grad_() for image in float_images(batch, device)]
        model.train_step(with_images(batch, images), optim_wrapper=wrapper)

    return alternate(
        {
            'stock update': lambda: model.train_step(stock, optim_wrapper=wrapper),
            'stock update with an input gradient': with_gradient,
            'FreeAT update': lambda: adversary.train_step(model, wrapper, batch, 1),
        },
        args,
    )


def attack_rows(
    runner: Runner, batch: dict, args: argparse.Namespace
) -> list[tuple[str, float]]:
    """Seconds per step of the bare passes and of PGD, as evaluation makes them.

    On one image of a detector's batch, or a classifier's whole batch.
    """
    model, device = runner.model, torch.device(args.device)
    if is_classifier(model):
        part, samples = batch, classifier_samples(batch['data_samples'], device)
    else:
        part = split_batch(batch)[0]
        samples = attack_samples(part['data_samples'], device, 'input')
    attack = PGD(eps=4, num_steps=STEPS, keep_best=False)

    def bare() -> None:
        images = float_images(part, device)
        for _ in range(STEPS):
            bare_gradient(model, images, samples)

    def pgd() -> None:
        oracle = make_oracle(model, part, samples, Objective())
        attack.perturb(oracle, float_images(part, device), torch.Generator())

    with loss_mode(model):
        rows = alternate({'bare forward and backward': bare, 'PGD step': pgd}, args)
    return [(name, seconds / STEPS) for name, seconds in rows]


def inner_attack_rows(
    runner: Runner, batch: dict, args: argparse.Namespace
) -> list[tuple[str, float]]:
    """Seconds of an APGD-AT update with two steps, and of its passes alone."""
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    model, device = runner.model.train(), torch.device(args.device)
    adversary = APGDAdversary(eps=4, num_steps=2)
    samples = classifier_samples(batch['data_samples'], device)

    def bare() -> None:
        images = float_images(batch, device)
        with loss_mode(model):
            bare_gradient(model, images, samples)
            bare_gradient(model, images, samples)
            with torch.no_grad():
                model(**as_data(model, images, samples), mode='loss')
        model.train_step(with_images(batch, images), optim_wrapper=wrapper)

    return alternate(
        {
            'bare passes of APGD-AT, 2 steps': bare,
            'APGD-AT update': lambda: adversary.train_step(model, wrapper, batch, 0),
        },
        args,
    )


def as_data(model: Any, images: list[Tensor], samples: list[Any]) -> dict:
    """What the model gets of images in pixel units."""
    inputs = torch.stack(images) if is_classifier(model) else images
    return model.data_preprocessor({'inputs': inputs, 'data_samples': samples})


def bare_gradient(model: Any, images: list[Tensor], samples: list[Any]) -> None:
    """One forward and input-only backward pass, with nothing around it."""
    leaves = [image.detach().requires_grad_() for image in images]
    data = as_data(model, leaves, samples)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    torch.autograd.grad(loss, leaves)


def alternate(
    sides: dict[str, Callable[[], object]], args: argparse.Namespace
) -> list[tuple[str, float]]:
    """Median seconds of each side, measured in turns after one warm-up call."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(args.repeats + 1):
        for name, side in sides.items():
            _wait(args.device)
            started = time.perf_counter()
            side()
            _wait(args.device)
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return [(name, statistics.median(values)) for name, values in seconds.items()]


def _wait(device: str) -> None:
    if device.startswith('cuda'):
        torch.cuda.synchronize()


if __name__ == '__main__':
    cli.run(main)
