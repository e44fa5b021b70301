"""Kills trainings at random moments, resumes them, and compares the final checkpoints.

    python experiments/resume/kill_train.py [--only PART_OF_A_NAME]

``tools/train.py`` runs once undisturbed for each setting. Then it runs again, and its
process group gets SIGKILL at one random moment after the other, each time going on with
``--resume``. At last it may finish, and both final checkpoints must have the same
weights, optimizer, moving average, schedules, perturbation and random generators.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (lets torch read mmengine's checkpoints)
import torch
from mmengine.config import Config
from mmrobust.datasets import digits_root, make_digits

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'RandomChoiceResize', 'scales': [(96, 96), (80, 80)], 'keep_ratio': True},
    {'type': 'RandomFlip', 'prob': 0.5},
    {'type': 'PhotoMetricDistortion'},
    {'type': 'PackDetInputs'},
]
FREE = {'type': 'mmrobust.FreeAdversary', 'eps': 8, 'replays': 4}
RUN = dict(FREE, carry='run')
PGD = {'type': 'mmrobust.PGDAdversary', 'eps': 8, 'num_steps': 1}
BY_EPOCH = 'mmrobust.AdvEpochBasedTrainLoop'
BY_ITER = 'mmrobust.AdvIterBasedTrainLoop'
WORKERS = {'num_workers': 2, 'persistent_workers': True}
# (base config, train_cfg, loader, updates between checkpoints or None for each epoch)
SETTINGS: dict[str, tuple[str, dict, dict, int | None]] = {
    'FreeAT, iterations, carry=run': (
        'standard_fcos',
        {'type': BY_ITER, 'max_iters': 60, 'val_interval': 20, 'adversary': RUN},
        WORKERS,
        7,
    ),
    'FreeAT, epochs, carry=epoch': (
        'standard_fcos',
        {'type': BY_EPOCH, 'max_epochs': 4, 'adversary': FREE},
        WORKERS,
        None,
    ),
    'FreeAT, epochs, carry=run, anywhere': (
        'standard_fcos',
        {'type': BY_EPOCH, 'max_epochs': 4, 'adversary': RUN},
        {'num_workers': 0},
        5,
    ),
    'PGD-AT, iterations': (
        'standard_faster-rcnn',
        {'type': BY_ITER, 'max_iters': 30, 'val_interval': 10, 'adversary': PGD},
        {'num_workers': 1},
        4,
    ),
    'NoAdversary, epochs': (
        'standard_faster-rcnn',
        {
            'type': BY_EPOCH,
            'max_epochs': 4,
            'adversary': {'type': 'mmrobust.NoAdversary'},
        },
        WORKERS,
        None,
    ),
}
# That of arXiv 2303.01870, on the demo's pictures in tar files.
HEAVY = 'the heavy recipe for a classifier, from tar shards'
HEAVY_EVERY = 5
PARTIAL = '.*.pth.*.pth'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/kill_train')
    parser.add_argument('--kills', type=int, default=5, help='for each setting')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', help='a part of the names of settings')
    return parser.parse_args()


def main() -> int:
    """Runs, kills, compares; returns the exit status."""
    args = parse_args()
    work = Path(args.work_dir)
    shutil.rmtree(work, ignore_errors=True)
    rng = random.Random(args.seed)
    failed = 0
    settings = {**SETTINGS, HEAVY: None}
    for number, (name, setting) in enumerate(settings.items()):
        if args.only and args.only not in name:
            continue
        folder = work / str(number)
        folder.mkdir(parents=True)
        config = folder / 'config.py'
        if setting is None:
            write_heavy(config)
        else:
            write_config(config, *setting)
        started = time.monotonic()
        with training(config, folder / 'whole') as process:
            startup = wait_for_checkpoint(process, folder / 'whole')
            check(process)
        seconds = time.monotonic() - started
        print(f'\n{name}: {seconds:.1f} s, the first checkpoint after {startup:.1f} s')
        print('| kill | moment | after (s) | last checkpoint |')
        print('|---|---|---|---|')
        killed = folder / 'killed'
        kinds = rng.choices(['start-up', 'training', 'saving'], [1, 3, 3], k=args.kills)
        for kill, kind in enumerate(kinds, 1):
            started = time.monotonic()
            with training(config, killed) as process:
                if kind == 'start-up':
                    time.sleep(rng.uniform(0, startup))
                elif kind == 'training':
                    wait_for_checkpoint(process, killed)
                    left = (seconds - startup) / (args.kills - kill + 1)
                    time.sleep(rng.uniform(0, left))
                else:
                    saving(process, killed, rng.randint(1, 3))
                    time.sleep(rng.uniform(0, 0.02))
                kind = kind if process.poll() is None else 'too late'
                after = time.monotonic() - started
            partial = ', and a part' if list(killed.glob(PARTIAL)) else ''
            print(f'| {kill} | {kind} | {after:.1f} | {last(killed)}{partial} |')
            sys.stdout.flush()
        with training(config, killed) as process:
            check(process)
        one, two = (digests(path / last(path)) for path in (folder / 'whole', killed))
        different = [key for key in one if one[key] != two.get(key)]
        left = [path.name for path in killed.glob(PARTIAL)]
        print(f'\nweights of {last(killed)}: {two["state_dict"][:16]}')
        print(f'different: {", ".join(different) or "nothing"}; left behind: {left}')
        failed += bool(different or left)
    return int(bool(failed))


def write_config(
    path: Path, base: str, train_cfg: dict, loader: dict, every: int | None
) -> None:
    """A demo config with augmentation, EMA, few images and checkpoints."""
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / f'{base}.py')
    by_epoch = train_cfg['type'] == BY_EPOCH
    cfg.train_cfg = train_cfg
    data = cfg.train_dataloader
    data.update(loader, batch_size=4)
    data.dataset.update(pipeline=PIPELINE, indices=20)
    data.sampler = {
        'type': 'DefaultSampler' if by_epoch else 'InfiniteSampler',
        'shuffle': True,
    }
    cfg.val_dataloader.dataset.indices = 4
    cfg.default_hooks.checkpoint.update(
        by_epoch=every is None, interval=every or 1, save_best='coco/bbox_mAP'
    )
    cfg.custom_hooks = [{'type': 'EMAHook', 'momentum': 0.01}]
    cfg.log_processor.by_epoch = by_epoch
    cfg.randomness = {'seed': 0}
    cfg.dump(path)


def write_heavy(path: Path) -> None:
    """A pre-training, of a narrow ConvNeXt on small crops, and its pictures."""
    root = Path(digits_root())
    make_digits(root)
    pictures = sorted((root / 'train').glob('*.png'))[:40]
    for part in range(2):
        with tarfile.open(path.parent / f'train-{part}.tar', 'w') as tar:
            for number, picture in enumerate(pictures[part::2]):
                tar.add(picture, f'{number % 2}/{picture.name}')
    cfg = Config.fromfile(ROOT / 'configs/pretrain/robust_convnext-tiny-convstem.py')
    cfg.model.backbone.arch = {'depths': [1] * 4, 'channels': [8, 8, 16, 16]}
    cfg.model.backbone.drop_path_rate = 0.2
    cfg.model.head.in_channels = 16
    data = cfg.train_dataloader
    data.update(WORKERS, batch_size=4)
    data.dataset.update(
        type='mmrobust.TarShardsDataset', data_root=str(path.parent.resolve())
    )
    data.dataset.pipeline[1].scale = 64
    for name in ('val', 'test'):
        for key in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{name}_{key}'] = None
    cfg.train_cfg.max_epochs = 12
    for scheduler, (begin, end) in zip(
        cfg.param_scheduler, ((0, 1), (1, 12)), strict=True
    ):
        scheduler.update(begin=begin, end=end)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=HEAVY_EVERY)
    cfg.update(load_from=None, randomness={'seed': 0})
    cfg.dump(path)


@contextmanager
def training(config: Path, folder: Path) -> Iterator[subprocess.Popen]:
    """``tools/train.py --resume`` in a process group of its own, dead at the end."""
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'train.py')]
    command += [str(config), '--work-dir', str(folder), '--resume']
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        'PYTHONPATH': f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
        'OMP_NUM_THREADS': '1',
    }
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_checkpoint(process: subprocess.Popen, folder: Path) -> float:
    """Waits for another checkpoint, or the end; returns the seconds."""
    started, before = time.monotonic(), last(folder)
    while process.poll() is None and last(folder) == before:
        time.sleep(0.002)
    return time.monotonic() - started


def saving(process: subprocess.Popen, folder: Path, number: int) -> None:
    """Waits until a checkpoint begins to be written, the first or a later one."""
    for path in folder.glob(PARTIAL):
        path.unlink()
    for count in range(number):
        while process.poll() is None and not list(folder.glob(PARTIAL)):
            time.sleep(0.0005)
        while (
            process.poll() is None and count + 1 < number and any(folder.glob(PARTIAL))
        ):
            time.sleep(0.0005)


def last(folder: Path) -> str:
    """The name of the checkpoint that mmengine noted last."""
    note = folder / 'last_checkpoint'
    return Path(note.read_text()).name if note.exists() else 'none'


def check(process: subprocess.Popen) -> None:
    """Waits for the end, which must be a good one."""
    if process.wait() != 0:
        raise SystemExit('the training failed: see log.txt in the work folder.')


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of each part of a checkpoint that belongs to the training."""
    checkpoint = torch.load(path, weights_only=True)
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    found = {part: checkpoint[part] for part in parts}
    (own,) = checkpoint['mmrobust_training']['ranks']
    return {part: digest(value) for part, value in {**found, **own}.items()}


def digest(value: Any) -> str:
    """SHA-256 of tensors, bit by bit, and numbers in dicts and lists."""
    found = hashlib.sha256()
    for text in flat(value):
        found.update(text)
    return found.hexdigest()


def flat(value: Any) -> Iterator[bytes]:
    """All there is in dicts and lists, as bytes."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from flat(value[key])
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from flat(inner)
    elif isinstance(value, torch.Tensor):
        yield f'{value.dtype} {tuple(value.shape)}'.encode()
        yield value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        yield repr(value).encode()


if __name__ == '__main__':
    sys.exit(main())
