"""Two processes (gloo, CPU) resume exactly: each has its own state in the checkpoint.

Run by torchrun, this file is the script of the two processes.
"""

from __future__ import annotations

import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import pytest
import quick
import tiny
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmrobust.utils.models import state_digest
from updates import NO_VALIDATION, epochs, free, in_two_processes, iters

RUN = free(eps=4, replays=2, carry='run')
LOOPS = {'epochs': epochs(2, RUN), 'iterations': iters(6, RUN)}
# After an epoch, and in the middle of a batch's replays.
RESUMED = {'epochs': 'epoch_1.pth', 'iterations': 'iter_3.pth'}


def train(root: Path, work: Path, name: str, by_epoch: bool, **extra: Any) -> dict:
    """Trains Faster R-CNN, whose samplers draw, on images that are flipped."""
    loader = tiny.loader(root, test=False, batch_size=1, scale=(64, 48))
    loader['dataset']['pipeline'].insert(3, dict(type='RandomFlip', prob=0.5))
    cfg = tiny.runner_config(
        root,
        work,
        tiny.faster_rcnn(),
        train_dataloader=loader,
        train_cfg=LOOPS[name],
        launcher='pytorch',
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
        ),
        **NO_VALIDATION,
        log_processor=dict(by_epoch=by_epoch),
        **extra,
    )
    cfg['experiment_name'] = f'{name}_{len(extra)}'
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


def main(folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=120))
    init_default_scope('mmdet')
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}
    for name, checkpoint in RESUMED.items():
        work, kept = folder / name, folder / f'{name}.kept'
        by_epoch = name == 'epochs'
        whole = train(folder / 'coco', work, name, by_epoch)
        if rank == 0:
            shutil.copy(work / checkpoint, kept)
        torch.distributed.barrier()
        resumed = dict(load_from=str(kept), resume=True)
        rest = train(folder / 'coco', work, name, by_epoch, **resumed)
        found[name] = [whole, rest]
    (folder / f'{rank}.json').write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp('resumed')
    tiny.make_coco(folder / 'coco', num_images=5)
    return in_two_processes(__file__, folder)


@pytest.mark.parametrize('name', list(RESUMED))
def test_two_processes_resume_exactly(ranks: list[dict[str, Any]], name: str) -> None:
    for found in ranks:
        whole, rest = found[name]
        assert rest == whole
    first, second = (found[name][0] for found in ranks)
    # States that are equal could not tell whose was restored. (Weights are equal,
    # BatchNorm's statistics are not.)
    assert first['weights'] != second['weights']
    assert first['deltas'] != second['deltas']
    assert first['drawn'] != second['drawn']


if __name__ == '__main__':
    quick.shorten(pytest.MonkeyPatch())
    main(Path(sys.argv[1]))
