"""What the processes of test_processes.py do, and how they are started.

As a script: forks them from one process that has imported everything, and ends the
others when one of them fails, as launchers do.
"""

from __future__ import annotations

import copy
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import cv2
import mmdet.models  # noqa: F401
import mmpretrain.models  # noqa: F401
import numpy as np
import pytest
import quick
import stored
import tiny
import torch
import updates
from mmdet.models.task_modules import RandomSampler
from mmdet.registry import TASK_UTILS
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, get_dist_info
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS, DefaultScope, init_default_scope
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.runner import Runner
from mmrobust.autoattack.shard import ShardStore
from mmrobust.evaluation.attack_pass import AttackPass
from mmrobust.evaluation.ensemble import EnsemblePass
from mmrobust.utils.store import Store, StorePart
from mmrobust.errors import ConfigError
from mmrobust.distributed import start_processes, whole
from mmrobust.registry import ADVERSARIES
from mmrobust.training.finite_updates import FiniteUpdates
from mmrobust.utils.models import state_digest
from mmrobust.utils.runner import build_runner
from studies.test_backbone_transfer import draw_classes, make_backbones, task
from torch import Tensor
from training.test_non_finite import faulty

TOOLS = Path(__file__).resolve().parents[1] / 'tools'
Job = Callable[[], Any]


# ------------------------------------------------------------------------- processes


def timeless(report: Any) -> Any:
    """What two equal evaluations have in common."""
    if isinstance(report, dict):
        skipped = ('seconds', 'environment', 'config', 'config_text', 'per_image')
        return {k: timeless(v) for k, v in report.items() if k not in skipped}
    return [timeless(v) for v in report] if isinstance(report, list) else report


def start(
    folder: Path, name: str, jobs: list[Job], limit: float = 400
) -> list[dict[str, Any]]:
    """Runs one process per job; says how each ended and what it wrote to stderr."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    running: dict[int, int] = {}
    for rank, job in enumerate(jobs):
        pid = os.fork()
        if pid == 0:
            _run(folder, f'{name}.{rank}', job, rank, len(jobs), port)
        running[pid] = rank
    began, ends = time.monotonic(), dict[int, Any]()
    while running and time.monotonic() - began < limit:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ends[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        if any(ends.values()):
            break
        time.sleep(0.02)
    for pid, rank in running.items():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ends[rank] = 'ended' if any(ends.values()) else 'hung'
    found = []
    for rank in range(len(jobs)):
        result = folder / f'{name}.{rank}.json'
        found.append(
            {
                'status': ends[rank],
                'errors': (folder / f'{name}.{rank}.err').read_text(),
                'result': json.loads(result.read_text()) if result.exists() else None,
            }
        )
    return found


def _run(folder: Path, name: str, job: Job, rank: int, size: int, port: int) -> None:
    for stream, ending in ((1, 'out'), (2, 'err')):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(folder / f'{name}.{ending}', flags), stream)
    code: Any = 1
    try:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        if size > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(size),
                MASTER_ADDR='127.0.0.1',
                MASTER_PORT=str(port),
            )
        result = job()
        if result is not None:
            (folder / f'{name}.json').write_text(json.dumps(result))
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def rank() -> int:
    return int(os.environ.get('RANK', 0))


def ending(
    place: tuple[type, str],
    job: Job,
    call: int = 1,
    before: Callable[[], Any] = lambda: None,
    error: Exception | None = None,
) -> Job:
    """The job, ended by SIGKILL or an error at that call of a method."""
    owner, method = place

    def job_that_ends() -> Any:
        stock, calls = getattr(owner, method), 0

        def end(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls < call:
                return stock(*args, **kwargs)
            before()
            if error:
                raise error
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, method, end)
        return job()

    return job_that_ends


def wait_for(folder: Path, pattern: str) -> None:
    while not list(folder.rglob(pattern)):
        time.sleep(0.02)


def tool(name: str, *arguments: Any) -> Job:
    """A command line."""

    def job() -> None:
        sys.argv = [name, *map(str, arguments)]
        if 'RANK' in os.environ:
            sys.argv += ['--launcher', 'pytorch']
        runpy.run_path(str(TOOLS / name), run_name='__main__')

    return job


# ---------------------------------------------------------------------- the launchers


def launched(launcher: str) -> Any:
    """What a process is told by a launcher, on a machine without a GPU."""
    place, size = os.environ.pop('RANK'), os.environ.pop('WORLD_SIZE')
    os.environ.pop('LOCAL_RANK')
    names = {
        'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
        'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
                'OMPI_COMM_WORLD_LOCAL_RANK'),
    }[launcher]  # fmt: skip
    os.environ.update(zip(names, (place, size, place), strict=True))
    os.environ['SLURM_NODELIST'] = 'localhost'
    cfg = Config(dict(launcher=launcher))
    start_processes(cfg)
    # The first one keeps the addresses, which the second may be still asking for.
    barrier()
    return [*get_dist_info(), cfg.model_wrapper_cfg.to_dict()]


def bare(folder: Path) -> dict[str, Any]:
    """What needs no model."""
    found = {
        name: start(folder, name, [partial(launched, name)] * 2)
        for name in ('slurm', 'mpi')
    }
    alone = tool('train.py', detector_config(folder), '--launcher', 'pytorch')
    found['launcher, alone'] = start(folder, 'alone', [alone])
    return found


# --------------------------------------------------- training: two processes like one


@TASK_UTILS.register_module()
class FirstSampler(RandomSampler):
    """Takes the first ones, so that nothing is random."""

    def random_choice(self, gallery: Tensor, num: int) -> Tensor:
        return gallery[:num]


ADVERSARY_KINDS: dict[str, dict[str, Any]] = dict(
    none=dict(type='mmrobust.NoAdversary'),
    free=dict(type='mmrobust.FreeAdversary', eps=4, replays=2),
    named=dict(
        type='mmrobust.FreeAdversary',
        eps=4,
        replays=2,
        objective='cls+reg',
        carry='run',
    ),
    pgd=dict(type='mmrobust.PGDAdversary', eps=4, num_steps=2, random_start=False),
    mtd=dict(type='mmrobust.MTDAdversary', eps=4, random_start=False),
    cwat=dict(type='mmrobust.CWATAdversary', eps=4, random_start=False),
    # No draws: both boxes wear a patch at their centre.
    pbcat=dict(
        type='mmrobust.PBCATAdversary',
        eps=4,
        replays=2,
        patch_share=1,
        patch_jitter=0,
        patch_size=0.5,
        awp_gamma=0.005,
    ),
    mixed=dict(
        type='mmrobust.PGDAdversary',
        eps=4,
        num_steps=1,
        random_start=False,
        objective=dict(name='mixed', of=['reg', 'cls+reg']),
    ),
)
# FCOS shares its normalisers among processes. DETR and Faster R-CNN do so with some
# only, so that mmdet's own training differs where processes have different numbers of
# objects or samples; here they have not.
EQUAL = {
    'fcos': list(ADVERSARY_KINDS),
    'faster_rcnn': ['free', 'pgd'],
    'detr': ['named', 'mtd'],
}
# Objects of an update's images, which processes take in turns.
OBJECTS = {'fcos': (1, 2, 1, 2), 'faster_rcnn': (1, 2, 2, 1), 'detr': (1, 2, 2, 1)}


def steady(name: str) -> ConfigDict:
    """A detector without randomness, whose images do not depend on each other."""
    model = copy.deepcopy(getattr(tiny, name)())
    model['backbone']['norm_eval'] = True
    nodes: list[Any] = [model]
    for node in nodes:  # which grow
        nodes += node.values() if isinstance(node, dict) else ()
        nodes += node if isinstance(node, list) else ()
        if not isinstance(node, dict):
            continue
        if node.get('type') == 'RandomSampler':
            # Fewer than there are proposals, so that all images have as many.
            node.update(type='FirstSampler', num=32)
        drops = {'dropout', 'attn_drop', 'proj_drop', 'ffn_drop'} & node.keys()
        node.update(dict.fromkeys(drops, 0.0))
    return ConfigDict(model)


def trained(name: str, kind: str, numbers: int = 1) -> list[Tensor]:
    """Weights after updates on four images each: all here, or a part of them.

    A perturbation that is carried gets a second batch to be carried to.
    """
    updates_seen = 0
    torch.manual_seed(0)
    model: Any = updates.make_model(steady(name))
    wrapper, wrapped = updates.sgd(model), model
    if torch.distributed.is_initialized():
        wrapped = MMDistributedDataParallel(
            module=model,
            broadcast_buffers=False,
            device_ids=None,
            find_unused_parameters=True,
        )
    adversary = ADVERSARIES.build(copy.deepcopy(ADVERSARY_KINDS[kind]))
    numbers *= 2 if kind == 'named' else 1
    for number in range(numbers):
        parts = [updates.make_batch([(64, 96)], 10 * number + i) for i in range(4)]
        parts = parts[rank() :: 2] if wrapped is not model else parts
        objects = OBJECTS[name][rank() :: 2] if wrapped is not model else OBJECTS[name]
        for part, count in zip(parts, objects, strict=True):
            sample = part['data_samples'][0]
            sample.gt_instances = sample.gt_instances[:count]
        batch = {key: [part[key][0] for part in parts] for key in parts[0]}
        for _ in range(adversary.replays):
            adversary.train_step(wrapped, wrapper, batch, updates_seen)
            updates_seen += 1
    return [value.detach().clone() for value in model.parameters()]


def join() -> None:
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=120))


def train_all(folder: Path) -> None:
    """Weights by detector and adversary, in a file of each process."""
    name = 'one'
    if 'RANK' in os.environ:
        join()
        name = 'two'
    found = {f'{m} {k}': trained(m, k) for m, kinds in EQUAL.items() for k in kinds}
    start = {f'{m} start': trained(m, 'none', 0) for m in EQUAL}
    torch.save({**found, **start}, folder / f'{name}{rank() or ""}.pth')


def train_some(folder: Path) -> Any:
    """Updates with a share of the images, of which processes have different numbers."""
    join()
    init_default_scope('mmdet')
    found: dict[str, Any] = {}
    for kind in ('pgd', 'mtd'):
        settings = {**ADVERSARY_KINDS[kind], 'share': 0.4}
        adversary = ADVERSARIES.build(settings)
        model: Any = updates.make_model(steady('fcos'))
        wrapped = MMDistributedDataParallel(
            module=model, broadcast_buffers=False, device_ids=None
        )
        wrapper, counts = updates.sgd(model), []
        for number in range(4):
            batch = updates.make_batch([(64, 96)] * 2, 10 * number + rank())
            counts.append(len(adversary.chosen(number, 2)))
            adversary.train_step(wrapped, wrapper, batch, number)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        found[kind] = [counts, float(weights.double().norm())]
    return found


# --------------------------------------------- training: each process has its own state

RUN = updates.free(eps=4, replays=2, carry='run')
# After an epoch, and in the middle of a batch's replays.
RESUMED = {
    'epochs': (updates.epochs(2, RUN), 'epoch_1.pth'),
    'iterations': (updates.iters(6, RUN), 'iter_3.pth'),
}


def resumable(folder: Path, name: str, **resumed: Any) -> dict[str, Any]:
    """Trains Faster R-CNN, whose samplers draw, on images that are flipped."""
    root, by_epoch = folder / 'coco', name == 'epochs'
    loader = tiny.loader(root, test=False, batch_size=1, scale=(64, 48))
    loader['dataset']['pipeline'].insert(3, dict(type='RandomFlip', prob=0.5))
    cfg = tiny.runner_config(
        root,
        folder / name,
        tiny.faster_rcnn(),
        train_dataloader=loader,
        train_cfg=RESUMED[name][0],
        launcher='pytorch',
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
        ),
        **updates.NO_VALIDATION,
        log_processor=dict(by_epoch=by_epoch),
        **resumed,
    )
    cfg['experiment_name'] = f'{name}_{len(resumed)}'
    cfg['default_hooks']['checkpoint'].update(
        by_epoch=by_epoch, interval=1 if by_epoch else 3
    )
    runner = Runner.from_cfg(Config(cfg))
    runner.train()
    deltas = runner.train_loop.adversary.state_dict(runner.iter)['deltas']
    return dict(
        weights=state_digest(runner.model.module),
        deltas=[float(delta.double().sum()) for delta in deltas],
        drawn=float(torch.rand(())),
    )


def resume_all(folder: Path) -> Any:
    """Whole runs, and what is left of them from a checkpoint."""
    join()
    init_default_scope('mmdet')
    found: dict[str, Any] = {}
    for name, (_, checkpoint) in RESUMED.items():
        whole, kept = resumable(folder, name), folder / f'{name}.kept'
        if rank() == 0:
            shutil.copy(folder / name / checkpoint, kept)
        torch.distributed.barrier()
        rest = resumable(folder, name, load_from=str(kept), resume=True)
        found[name] = [whole, rest]
    return found


# ------------------------------------------- training: processes share out the weights

SHARED = dict(type='mmrobust.FSDPStrategy', blocks=['BasicBlock'], recompute=True)
STRATEGIES = {
    'ddp': dict(
        type='DDPStrategy',
        model_wrapper=dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
        ),
    ),
    'fsdp': SHARED,
}
OPTIMIZER = dict(
    type='OptimWrapper',
    # A smaller eps would let gradients that are roundings move weights like others.
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, eps=1e-3),
    constructor='mmrobust.BackboneLrOptimWrapperConstructor',
    clip_grad=dict(max_norm=1),
)


def partly_frozen() -> ConfigDict:
    """A small FCOS: weights that are single numbers, and some that do not learn."""
    model = steady('fcos')
    two = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    model.backbone.update(frozen_stages=1, **two)
    model.neck.update(in_channels=[4, 8], num_outs=2)
    model.bbox_head.update(strides=[4, 8], regress_ranges=((-1, 32), (32, 1e8)))
    return model


def share_out(folder: Path) -> Any:
    """The same updates under DDP and FSDP; the checkpoints are in files."""
    start_processes(Config(dict(launcher='pytorch')))
    found: dict[str, Any] = {}
    pgd = ADVERSARY_KINDS['pgd']
    methods = {'free': updates.free(eps=4, replays=2, carry='run'), 'pgd': pgd}
    for (name, settings), (kind, method) in product(
        STRATEGIES.items(), methods.items()
    ):
        environment = dict(launcher='pytorch', randomness=dict(seed=0))
        strategy = MMENGINE_STRATEGIES.build(
            dict(
                copy.deepcopy(settings),
                work_dir=str(folder),
                experiment_name=f'{name} {kind}',
                env_kwargs=environment,
                log_kwargs=dict(log_level='ERROR'),
            )
        )
        init_default_scope('mmdet')
        model, wrapper = strategy.prepare(
            partly_frozen(),
            optim_wrapper=copy.deepcopy(OPTIMIZER),
            dispatch_kwargs=dict(max_iters=4),
        )
        adversary, number = ADVERSARIES.build(copy.deepcopy(method)), 0
        guard = FiniteUpdates(model.train(), wrapper, 3)
        with guard.active():
            for batch in (
                updates.make_batch([(64, 96)], 2 * i + rank()) for i in (0, 1)
            ):
                for _ in range(adversary.replays):
                    adversary.train_step(model, wrapper, batch, number)
                    number += 1
            norms = wrapper.message_hub.get_scalar('train/grad_norm').data[0]
            # A fault in the part of one process alone.
            before = [weight.detach().clone() for weight in model.parameters()]
            for weight in model.parameters():
                weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
            first = next(w for w in model.parameters() if w.requires_grad and len(w))
            if rank() == 0:
                first.grad.view(-1)[0] = torch.inf
            wrapper.step()
        strategy.save_checkpoint(
            str(folder / f'{name}_{kind}.pth'), save_param_scheduler=False
        )
        found[f'{name} {kind}'] = dict(
            norms=norms.tolist()[-number:],
            held=sum(weight.numel() for weight in model.parameters()),
            skipped=guard.skipped,
            kept=all(map(torch.equal, before, model.parameters())),
        )
    return found


def resume_shared(folder: Path) -> Any:
    """A whole training under FSDP, and what is left of it from a checkpoint."""
    root = tiny.make_coco(folder / 'coco')
    found = []
    start_processes(Config(dict(launcher='pytorch')))
    for more in ({}, dict(load_from=str(folder / 'shared.kept'), resume=True)):
        cfg = tiny.runner_config(
            root,
            folder / 'shared',
            partly_frozen(),
            train_dataloader=tiny.loader(
                root, test=False, batch_size=1, scale=(64, 48)
            ),
            train_cfg=updates.iters(2, updates.free(eps=4, replays=2, carry='run')),
            optim_wrapper=copy.deepcopy(OPTIMIZER),
            launcher='pytorch',
            strategy=copy.deepcopy(SHARED),
            **updates.NO_VALIDATION,
            log_processor=dict(by_epoch=False),
            experiment_name=f'shared_{len(more)}',
            **more,
        )
        cfg['default_hooks']['checkpoint'].update(by_epoch=False, interval=1)
        runner = build_runner(Config(cfg), training=True)
        runner.train()
        if rank() == 0 and not more:
            shutil.copy(folder / 'shared/iter_1.pth', folder / 'shared.kept')
        barrier()
        deltas = runner.train_loop.adversary.state_dict(runner.iter)['deltas']
        with whole(runner.model):
            weights = [float(w.double().norm()) for w in runner.model.parameters()]
        found.append([weights, [float(d.double().sum()) for d in deltas]])
    return found


FAULTS: list[list[str | None]] = [
    [None, 'loss', 'grad', None, None, None, None, *[None] * 9],
    [None, None, None, None, 'features', None, None, *['loss'] * 9],
]


def skip_faults() -> Any:
    """Updates of which one process or the other has some that are not finite."""
    join()
    bare, wrapper, batch = faulty(FAULTS[rank()])
    model = MMDistributedDataParallel(bare, broadcast_buffers=False)
    weights, stopped = [bare.conv.weight.tolist()], None
    with FiniteUpdates(model, wrapper, 3).active():
        for update in range(16):
            try:
                model.train_step(batch, wrapper)
            except ConfigError as error:
                stopped = [update, 'not finite in 3 updates in a row' in str(error)]
                break
            weights.append(bare.conv.weight.tolist())
    return dict(
        weights=weights,
        changed=[a != b for a, b in pairwise(weights)],
        stopped=stopped,
        finite=all(bool(v.isfinite().all()) for v in bare.state_dict().values()),
    )


# ------------------------------------------------------------------- detectors in tools


@HOOKS.register_module()
class ValidationNotes(Hook):
    """What validations gave."""

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Writes it to a file."""
        path = Path(runner.work_dir) / f'validation_{rank()}.json'
        path.write_text(json.dumps(metrics))


CHECKPOINT = 'work/epoch_1.pth'
CLS = dict(type='mmrobust.PGD', eps=8, num_steps=2, objective='cls')


def detector_config(folder: Path) -> Path:
    """Adversarial training on five images, with attacks in the validation."""
    root = tiny.make_coco(folder / 'coco', num_images=5)
    cfg = tiny.runner_config(
        root,
        folder / 'work',
        tiny.fcos(),
        train_dataloader=tiny.loader(root, test=False, batch_size=1),
        train_cfg=dict(
            type='mmrobust.AdvEpochBasedTrainLoop',
            max_epochs=1,
            adversary=dict(type='mmrobust.FreeAdversary', eps=1, replays=2),
        ),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=1e-4),
            clip_grad=dict(max_norm=10),
        ),
        # It knows the images of a dataset of six, which begins with these.
        load_from=str(stored.checkpoint('fcos', folder)),
        val_cfg=dict(
            type='mmrobust.AttackValLoop', attacks=dict(cls=CLS), num_images=3
        ),
        custom_hooks=[dict(type='ValidationNotes')],
        # As in mmdet's own default_runtime.py.
        env_cfg=dict(
            mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
            dist_cfg=dict(backend='nccl'),
        ),
    )
    hooks = cfg['default_hooks']
    hooks['attack_visualization'] = dict(
        type='mmrobust.AttackVisualizationHook', num_images=0
    )
    return written(folder / 'detector.py', cfg)


def written(path: Path, cfg: dict[str, Any]) -> Path:
    """A config file; mmengine's way to write it takes a second."""
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.items()))
    return path


def test_arguments(folder: Path, config: Path, work: str) -> list[Any]:
    """An evaluation of three images by an attack and an ensemble."""
    ensemble = dict(
        type='mmrobust.Ensemble',
        eps=6,
        members=dict(
            noise=dict(type='mmrobust.RandomNoise'),
            total=dict(type='mmrobust.PGD', num_steps=2),
        ),
    )
    attacks = dict(cls=CLS, all=ensemble)
    cfg = Config.fromfile(config).to_dict()
    cfg['test_cfg'] = dict(type='mmrobust.AttackTestLoop', attacks=attacks)
    path = written(folder / f'{work}.py', cfg)
    place = folder / work
    arguments = [path, folder / CHECKPOINT, '--work-dir', place, '--num-images', 3]
    return [*arguments, '--save-adv', place / 'adv']


def detectors(folder: Path) -> dict[str, Any]:
    """A training, and evaluations, most of them with an end before the end."""
    config = detector_config(folder)
    training = tool('train.py', config)
    found = {'training': start(folder, 'training', [training] * 2)}
    one = tool('test.py', *test_arguments(folder, config, 'one'))
    found['one'] = start(folder, 'test_one', [one])
    two = tool('test.py', *test_arguments(folder, config, 'two'))
    chain: dict[str, list[Job]] = {
        'description, first killed': [ending((Store, '_open'), two), two],
        'benign, second killed': [two, ending((StorePart, 'write'), two, call=2)],
        'waiting, first killed': [
            ending(
                (AttackPass, '_outcomes'),
                two,
                before=partial(wait_for, folder / 'two', 'cls-*/*-1.done'),
            ),
            two,
        ],
        'scoring, second fails': [
            two,
            ending((AttackPass, '_score'), two, error=RuntimeError('out of luck')),
        ],
        'choice, first killed': [ending((EnsemblePass, '_search'), two), two],
    }
    for index, (name, jobs) in enumerate(chain.items()):
        found[name] = start(folder, f'test{index}', jobs)
    # Another number of processes goes on.
    shutil.copytree(folder / 'two', folder / 'two_then_one')
    job = tool('test.py', *test_arguments(folder, config, 'two_then_one'))
    found['two_then_one'] = start(folder, 'two_then_one', [job])
    job = tool('test.py', *test_arguments(folder, config, 'one_then_two'))
    killed = ending((StorePart, 'write'), job, call=5)
    found['alone, killed'] = start(folder, 'one_killed', [killed])
    found['one_then_two'] = start(folder, 'one_then_two', [job] * 2)
    found['two'] = start(folder, 'test_two', [two] * 2)
    return found


# ----------------------------------------------------------------- classifiers by hand


def classifier_config(folder: Path, work: str, **overrides: Any) -> Config:
    """Adversarial training and attacks on five pictures, three to a process."""
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CustomDataset',
            data_root=str(folder),
            ann_file='labels.txt',
            data_prefix='pictures',
            metainfo=dict(classes=[f'class {i}' for i in range(4)]),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        ),
    )
    backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    backbone.update(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    scaling = dict(num_classes=4, mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True)
    cfg = dict(
        model=dict(
            type='ImageClassifier',
            data_preprocessor=scaling,
            backbone=dict(backbone, norm_eval=True),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=4, in_channels=16),
        ),
        work_dir=str(folder / work),
        train_dataloader=loader,
        train_cfg=dict(
            type='mmrobust.AdvEpochBasedTrainLoop',
            max_epochs=2,
            adversary=dict(type='mmrobust.PGDAdversary', eps=4, num_steps=1),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        test_dataloader=copy.deepcopy(loader),
        test_evaluator=dict(type='Accuracy', topk=(1,)),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop',
            attacks=dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=2)),
        ),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1000)),
        visualizer=dict(type='UniversalVisualizer', vis_backends=[]),
        default_scope='mmpretrain',
        randomness=dict(seed=0),
        log_level='ERROR',
        launcher='pytorch' if 'RANK' in os.environ else 'none',
        experiment_name=work,
    )
    return Config({**cfg, **overrides})


def draw_pictures(folder: Path) -> None:
    (folder / 'pictures').mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        cv2.imwrite(f'{folder}/pictures/{index}.png', picture)
    lines = [f'{index}.png {index % 4}\n' for index in range(5)]
    (folder / 'labels.txt').write_text(''.join(lines))


class Seen(Hook):
    """Names of the pictures that a process was given, in their order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        samples = data_batch['data_samples']
        self.names += [Path(sample.img_path).stem for sample in samples]


def classify(folder: Path, work: str) -> Any:
    """A training, and an evaluation of the first weights."""
    cfg = classifier_config(folder, work)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        start_processes(cfg)
        runner = Runner.from_cfg(cfg)
        metrics, seen = runner.test(), Seen()
        runner.register_hook(seen)
        runner.train()
        report = json.loads((folder / work / 'robustness.json').read_text())
        weights = [p.double().sum().item() for p in runner.model.parameters()]
        attack = report['attacks'][0]
        return dict(
            metrics=metrics,
            iter=runner.iter,
            seen=seen.names,
            weights=weights,
            forwards=attack['cost']['forwards'],
            watched=attack['watched'],
        )


def uneven(folder: Path) -> list[str]:
    """The messages for samplers that give the processes different numbers."""
    cfg, found = classifier_config(folder, 'uneven'), []
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.sampler.round_up = False
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        start_processes(cfg)
        runner = Runner.from_cfg(cfg)
        for use in (runner.train, runner.test):
            with pytest.raises(ConfigError) as refused:
                use()
            found.append(str(refused.value))
    return found


def autoattack(folder: Path, work: str) -> Any:
    """AutoAttack by a script that only starts the processes."""
    loop = dict(
        type='mmrobust.AutoAttackTestLoop',
        attacks=['apgd-ce:n_iter=3,n_restarts=1', 'square:n_queries=5'],
        shard_size=1,
    )
    cfg = classifier_config(folder, work, test_cfg=loop)
    if 'RANK' in os.environ:
        join()
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
        )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return Runner.from_cfg(cfg).test()


def classifiers(folder: Path) -> dict[str, Any]:
    """Classifiers, in two processes and in one."""
    draw_pictures(folder)
    found = {}
    for size, work in ((1, 'one_classifier'), (2, 'two_classifiers')):
        found[work] = start(folder, work, [partial(classify, folder, work)] * size)
    found['uneven'] = start(folder, 'uneven', [partial(uneven, folder)] * 2)
    one = partial(autoattack, folder, 'auto_one')
    two = partial(autoattack, folder, 'auto_two')
    found['shards, one'] = start(folder, 'auto_one', [one])
    place = (ShardStore, 'write')
    shards = partial(wait_for, folder / 'auto_two/robustness.shards', '000004.json')
    found['shards, second killed'] = start(
        folder, 'auto1', [two, ending(place, two, before=shards)]
    )
    found['shards, two'] = start(folder, 'auto_two', [two] * 2)
    return found


# ----------------------------------------------------------------------------- a study


def transfer(folder: Path) -> dict[str, Any]:
    """Two trainings of classifiers by the tool."""
    root = folder / 'transfer'
    draw_classes(root / 'pictures')
    make_backbones(root)
    config = written(root / 'config.py', task(root / 'pictures').to_dict())
    arguments = [
        config,
        '--checkpoints',
        f'4={root}/4.pth',
        '--work-dir',
        root / 'work',
    ]
    return {
        'transfer': start(folder, 'transfer', [tool('transfer.py', *arguments)] * 2)
    }


# ------------------------------------------------------------------------------ script


def main(folder: Path) -> None:
    """Everything, one after the other."""
    training = partial(train_all, folder)
    found = {
        'equal, one': start(folder, 'equal_one', [training]),
        'equal, two': start(folder, 'equal_two', [training] * 2),
        'share': start(folder, 'share', [partial(train_some, folder)] * 2),
        'faults': start(folder, 'faults', [skip_faults] * 2),
        'shared out': start(folder, 'share_out', [partial(share_out, folder)] * 2),
        'shared, resumed': start(
            folder, 'resume_shared', [partial(resume_shared, folder)] * 2
        ),
        **bare(folder),
        **detectors(folder),
        'resumed': start(folder, 'resumed', [partial(resume_all, folder)] * 2),
        **classifiers(folder),
        **transfer(folder),
    }
    (folder / 'found.json').write_text(json.dumps(found))


if __name__ == '__main__':
    quick.shorten(pytest.MonkeyPatch())
    main(Path(sys.argv[1]))
