"""Measures what adversarial training and attacks cost, as ratios within one run.

Training: a FreeAT update against a stock mmdet update of the same batch. Attack: a PGD
step against the bare forward and input-only backward pass it cannot do without. The
two sides of a ratio alternate, so that a machine whose speed drifts slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmrobust import cli
from mmrobust.attacks import PGD
from mmrobust.batch import attack_samples, float_images, split_batch, with_images
from mmrobust.engine import FreeAdversary
from mmrobust.objective import LossOracle, Objective, loss_mode
from torch import Tensor

STEPS = 10


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of any mmdet detector')
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
    runner = Runner.from_cfg(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    runner.model.to(args.device)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    batch = next(iter(loader))
    rows = [*training_rows(runner, batch, args), *attack_rows(runner, batch, args)]
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
    """Seconds per step of the bare passes on one image, and of PGD."""
    model, device = runner.model, torch.device(args.device)
    single = split_batch(batch)[0]
    samples = attack_samples(single['data_samples'], device, 'input')
    attack = PGD(eps=4, num_steps=STEPS, keep_best=False)

    def bare() -> None:
        images: list[Tensor] = float_images(single, device)
        for _ in range(STEPS):
            leaf = images[0].detach().requires_grad_()
            data = model.data_preprocessor({'inputs': [leaf], 'data_samples': samples})
            loss, _ = model.parse_losses(model(**data, mode='loss'))
            torch.autograd.grad(loss, [leaf])

    def pgd() -> None:
        oracle = LossOracle(model, single, samples, Objective())
        attack.perturb(oracle, float_images(single, device), torch.Generator())

    with loss_mode(model):
        rows = alternate({'bare forward and backward': bare, 'PGD step': pgd}, args)
    return [(name, seconds / STEPS) for name, seconds in rows]


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
