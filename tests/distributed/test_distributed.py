"""Two processes (gloo, CPU): training keeps them equal, evaluation gives one figure.

Run by torchrun, this file is the script of the two processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import numpy as np
import pytest
import quick
import stored
import tiny
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmrobust.evaluation.box_analysis import BoxAnalysis
from mmrobust.utils.store import StorePart
from mmrobust.errors import ConfigError

# The first test waits for all processes, on a loaded machine for long.
pytestmark = pytest.mark.timeout(900)
MAP = 'coco/bbox_mAP'
# The sign of its gradient does not change with the normaliser, which mmdet's heads
# average over the processes, so that the images are the same for one and two.
CLS = dict(type='mmrobust.PGD', eps=8, num_steps=2, objective='cls')
ATTACKS = dict(
    zero=dict(type='mmrobust.PGD', eps=0, num_steps=1),
    noise=dict(type='mmrobust.RandomNoise', eps=8),
    cls=CLS,
)
# A report of them is the same for any number of processes, to the last digit.
ENSEMBLE = dict(
    cls=CLS,
    all=dict(
        type='mmrobust.Ensemble',
        eps=6,
        members=dict(
            noise=dict(type='mmrobust.RandomNoise'),
            cls=dict(type='mmrobust.APGD', num_steps=2, objective='cls'),
            # Adds up over objects, and divides by a number that processes share in
            # training.
            total=dict(type='mmrobust.PGD', num_steps=2),
        ),
    ),
)
# Heads take images of different sizes, and so of different cost.
ADVERSARIES = dict(
    free=dict(type='mmrobust.FreeAdversary', eps=4, replays=2),
    named=dict(type='mmrobust.FreeAdversary', eps=4, replays=2, objective=['loss_cls']),
    pgd=dict(type='mmrobust.PGDAdversary', eps=4, num_steps=1),
    none=dict(type='mmrobust.FreeAdversary', eps=0, replays=2),
)


def runner_for(root: Path, work_dir: Path, name: str, **overrides: Any) -> Runner:
    cfg = tiny.runner_config(root, work_dir, tiny.fcos(), **overrides)
    cfg['experiment_name'] = name
    if torch.distributed.is_initialized():
        cfg['launcher'] = 'pytorch'
        # mmengine's default asks for a GPU.
        cfg['model_wrapper_cfg'] = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            device_ids=None,
        )
    return Runner.from_cfg(Config(cfg))


def evaluate(root: Path, folder: Path, name: str, **loop: Any) -> dict[str, Any]:
    """Metrics of all attacks on the five images."""
    test_cfg = dict(
        type='mmrobust.AttackTestLoop',
        attacks=ATTACKS,
        save_adv=str(folder / name / 'adv'),
        check_images=1,
        gallery=1,
        **loop,
    )
    runner = runner_for(
        root,
        folder / name,
        name,
        test_cfg=test_cfg,
        load_from=str(folder / 'trained.pth'),
    )
    return {key: float(value) for key, value in runner.test().items()}


class Interrupted(BaseException):
    """Ends an evaluation where no handler expects it."""


@contextmanager
def interruption(call: int) -> Iterator[None]:
    """This process's record of that number is not written any more."""
    stock, calls = StorePart.write, 0

    def interrupted(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Interrupted
        stock(*args)

    StorePart.write = interrupted  # type: ignore[method-assign]
    try:
        yield
    except Interrupted:
        pass
    else:
        raise AssertionError('not interrupted')
    finally:
        StorePart.write = stock  # type: ignore[method-assign]


def report_of(root: Path, folder: Path, name: str, stop: int | None = None) -> Any:
    """The report of the ensemble without times; None if it stops at a record."""
    BoxAnalysis.__init__.__defaults__ = (0, 20)  # resamples
    settings = dict(
        type='mmrobust.AttackTestLoop', attacks=ENSEMBLE, check_images=0, gallery=0
    )
    runner = runner_for(
        root,
        folder / name,
        f'{name}_{stop}',
        test_cfg=settings,
        load_from=str(folder / 'trained.pth'),
    )
    if stop is not None:
        with interruption(stop):
            runner.test()
        return None
    runner.test()
    path = folder / name / 'robustness.json'
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return timeless(json.loads(path.read_text()))


def timeless(report: Any) -> Any:
    if isinstance(report, dict):
        skipped = ('seconds', 'date', 'command', 'config_text', 'processes')
        return {k: timeless(v) for k, v in report.items() if k not in skipped}
    return [timeless(v) for v in report] if isinstance(report, list) else report


def records_of(folder: Path, name: str) -> int:
    return len(list((folder / name).rglob('*.record')))


class _Notes(Hook):
    """The images of each update, in numbers."""

    def __init__(self) -> None:
        self.images: list[list[int]] = []

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        self.images.append([s.img_id for s in data_batch['data_samples']])


def train(root: Path, folder: Path, name: str) -> dict[str, Any]:
    """One pass of adversarial training; what this process ends with."""
    loader = tiny.loader(root, test=False, batch_size=1, scale=(64, 48))
    runner = runner_for(
        root,
        folder / name,
        name,
        train_dataloader=loader,
        train_cfg=dict(
            type='mmrobust.AdvEpochBasedTrainLoop',
            max_epochs=1,
            adversary=ADVERSARIES[name],
        ),
        val_dataloader=None,
        val_evaluator=None,
        val_cfg=None,
    )
    notes = _Notes()
    runner.register_hook(notes)
    runner.train()
    digest = hashlib.sha256()
    for _, weight in sorted(runner.model.module.named_parameters()):
        digest.update(weight.detach().numpy().tobytes())
    return dict(weights=digest.hexdigest(), images=notes.images, iter=runner.iter)


def refusal(root: Path, folder: Path) -> str:
    """The message for a sampler that gives the processes different numbers."""
    loader = tiny.loader(root, test=True)
    loader['sampler']['round_up'] = False
    runner = runner_for(
        root,
        folder / 'refused',
        'refused',
        test_dataloader=loader,
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS),
    )
    try:
        runner.test()
    except ConfigError as error:
        return str(error)
    return 'not refused'


def resumed(root: Path, folder: Path, rank: int) -> dict[str, Any]:
    """Reports of evaluations that were interrupted before."""
    # In the benign pass, in the first attack, in the second one, and the processes not
    # equally far. Never at the last image of process 1, which is the first one of
    # process 0 and may be on record: it would go on, and wait for the other in vain.
    for stop in ((2, 2), (4, 3), (5, 3)):
        report_of(root, folder, 'two_then_two', stop[rank])
        torch.distributed.barrier()
    return dict(
        two_then_two=report_of(root, folder, 'two_then_two'),
        one_then_two=report_of(root, folder, 'one_then_two'),
    )


def main(folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=120))
    init_default_scope('mmdet')
    work(folder)
    torch.distributed.destroy_process_group()


def work(folder: Path) -> None:
    root = folder / 'coco'
    rank = torch.distributed.get_rank()
    result = dict(
        metrics=evaluate(root, folder, 'two'),
        subset=evaluate(root, folder, 'two_subset', num_images=3),
        trained={name: train(root, folder, name) for name in ADVERSARIES},
        refusal=refusal(root, folder),
        report=report_of(root, folder, 'all_two'),
        resumed=resumed(root, folder, rank),
    )
    report_of(root, folder, 'two_then_one', stop=(5, 4)[rank])
    (folder / f'rank{rank}.json').write_text(json.dumps(result))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that knows five images, and what two processes made of it."""
    folder = tmp_path_factory.mktemp('distributed')
    root = tiny.make_coco(folder / 'coco', num_images=5)
    torch.set_num_threads(1)
    init_default_scope('mmdet')
    # It knows the images of a dataset of six, which begins with these.
    torch.save(dict(state_dict=stored.weights('fcos')), folder / 'trained.pth')
    report_of(root, folder, 'one_then_two', stop=8)
    assert records_of(folder, 'one_then_two') == 7
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([*paths, os.environ.get('PYTHONPATH', '')]),
        'OMP_NUM_THREADS': '1',
    }
    command = [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run']
    command += ['--standalone', '--nproc_per_node=2', __file__, str(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope='module')
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each process found."""
    return [json.loads((folder / f'rank{r}.json').read_text()) for r in range(2)]


@pytest.mark.parametrize('name', list(ADVERSARIES))
def test_training_keeps_the_processes_equal(
    ranks: list[dict[str, Any]], name: str
) -> None:
    first, second = (rank['trained'][name] for rank in ranks)
    assert first['weights'] == second['weights']
    # Five images and a repeated one, three on each, each handed out `replays` times.
    replays = ADVERSARIES[name].get('replays', 1)
    assert first['iter'] == second['iter'] == 3 * replays
    seen = [images[0] for rank in (first, second) for images in rank['images']]
    assert set(seen) == {10, 11, 12, 13, 14}
    assert len(seen) == 6 * replays


def test_training_is_adversarial_under_ddp(ranks: list[dict[str, Any]]) -> None:
    """Each adversary leads elsewhere; an override that DDP ignores would not."""
    weights = {name: found['weights'] for name, found in ranks[0]['trained'].items()}
    assert len(set(weights.values())) == len(weights)


def test_two_processes_give_the_figures_of_one(
    folder: Path, ranks: list[dict[str, Any]]
) -> None:
    """Five images on two processes: an uneven split, and it comes to its end."""
    torch.set_num_threads(1)
    single = evaluate(folder / 'coco', folder, 'one')
    assert single[MAP] > 0.3
    assert single[f'cls/{MAP}'] < 0.8 * single[MAP]
    for rank in ranks:
        assert rank['metrics'].keys() == single.keys()
        for key, value in single.items():
            # Rounding of the shared normaliser can flip the sign of single gradients.
            tolerance = 0.05 if key.startswith('cls/') else 0
            assert rank['metrics'][key] == pytest.approx(value, abs=tolerance), key
            if key.startswith('zero/'):
                assert value == single[key.removeprefix('zero/')]
    assert ranks[0]['metrics'] == ranks[1]['metrics']
    # The images themselves, which the figures round away.
    for name in ('noise', 'cls'):
        ours = images_of(folder / 'two' / 'adv' / name)
        theirs = images_of(folder / 'one' / 'adv' / name)
        assert sorted(ours) == sorted(theirs) == ['10', '11', '12', '13', '14']
        for key in ours:
            agreement = float((ours[key] == theirs[key]).mean())
            assert agreement == 1 if name == 'noise' else agreement > 0.98


def images_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path)['image'] for path in folder.glob('*.npz')}


def test_a_subset_is_the_same_for_all_processes(
    folder: Path, ranks: list[dict[str, Any]]
) -> None:
    torch.set_num_threads(1)
    single = evaluate(folder / 'coco', folder, 'one_subset', num_images=3)
    assert ranks[0]['subset'] == ranks[1]['subset']
    for key in (MAP, f'zero/{MAP}', f'noise/{MAP}'):
        assert ranks[0]['subset'][key] == single[key]
    ours, theirs = (
        sorted(images_of(folder / name / 'adv' / 'noise'))
        for name in ('two_subset', 'one_subset')
    )
    assert ours == theirs
    assert len(ours) == 3


def test_the_report_is_written_once_and_adds_up(folder: Path) -> None:
    report = json.loads((folder / 'two' / 'robustness.json').read_text())
    assert report['complete'] is True
    assert report['environment']['processes'] == 2
    assert report['dataset']['num_images'] == 5
    costs = {attack['name']: attack['cost'] for attack in report['attacks']}
    # Five images, the one that fills up the shares counted once: clean value, two
    # steps, last iterate.
    assert (costs['cls']['forwards'], costs['cls']['backwards']) == (20, 10)
    assert costs['noise']['forwards'] == 0


def test_the_report_does_not_depend_on_the_processes(
    folder: Path, ranks: list[dict[str, Any]]
) -> None:
    """Nor on interruptions, between which their number may change."""
    torch.set_num_threads(1)
    single = report_of(folder / 'coco', folder, 'all_one')
    _, ensemble = single['attacks']
    assert ensemble['metrics'][MAP] < 0.5 * single['benign']['metrics'][MAP]
    assert len(ensemble['members']) == 3
    assert ensemble['cost']['images'] == 5
    # All of the benign pass, and some of the first attack.
    assert records_of(folder, 'two_then_one') > 5
    found = {
        'two': ranks[0]['report'],
        **ranks[0]['resumed'],
        'two_then_one': report_of(folder / 'coco', folder, 'two_then_one'),
    }
    for name, report in found.items():
        assert report == single, name
    assert not list(folder.rglob('*.record'))
    assert not list(folder.rglob('*records*'))


def test_an_uneven_sampler_is_refused_by_all(ranks: list[dict[str, Any]]) -> None:
    """Results of unequal shares would be put together in a wrong order."""
    for rank in ranks:
        assert 'set sampler.round_up=True' in rank['refusal']


if __name__ == '__main__':
    quick.shorten(pytest.MonkeyPatch())
    main(Path(sys.argv[1]))
