"""Does one run: trains, attacks, or measures. Interrupted, it goes on where it was."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import models
import torch
from grid import ATTACKS, EPS, Run, Scale
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmrobust.attacks import attack_preset
from mmrobust.report import device_name, package_versions
from mmrobust.studies.attack_matrix import Detector, Plan
from mmrobust.studies.attack_transfer import run_matrix, run_test
from mmrobust.studies.backbone_plan import Sweep
from mmrobust.studies.backbone_transfer import run_sweep
from mmrobust.utils.files import write_atomically


@dataclass
class Study:
    """Where a study lies and what it is made of.

    Attributes:
        work_dir: folder of everything.
        data: content of ``data.json``.
        scale: sizes.
    """

    work_dir: Path
    data: dict[str, Any]
    scale: Scale

    @property
    def data_root(self) -> Path:
        """Folder of the data."""
        return self.work_dir / 'data'

    def folder(self, name: str) -> Path:
        """Folder of a run."""
        return self.work_dir / 'runs' / name

    def record_path(self, name: str) -> Path:
        """Where a run's record lies."""
        return self.folder(name) / 'record.json'

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a finished run."""
        path = self.record_path(name)
        return json.loads(path.read_text()) if path.exists() else None

    def checkpoint(self, name: str) -> Path:
        """The weights that a finished run has made."""
        record = self.record(name)
        assert record, f'{name} has not been run'
        return self.folder(name) / record['checkpoint']


def do(run: Run, study: Study) -> dict[str, Any]:
    """Does a run and writes its record; returns the record."""
    folder = study.folder(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / 'begun'
    resumed = begun.exists()
    begun.touch()
    wall, cpu = time.monotonic(), time.process_time()
    found = KINDS[run.kind](run, study)
    record = {
        'name': run.name,
        'kind': run.kind,
        'seed': run.seed,
        'settings': run.settings,
        'needs': run.needs,
        'data_sha256': study.data['sha256'],
        'seconds': round(time.monotonic() - wall, 1),
        'cpu_seconds': round(time.process_time() - cpu, 1),
        'resumed': resumed,
        'machine': machine(),
        'versions': package_versions(),
        **found,
    }
    write_atomically(
        study.record_path(run.name), json.dumps(record, indent=1, default=str) + '\n'
    )
    return record


def machine() -> str:
    """What the run was made on."""
    device = device_name(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))
    threads = torch.get_num_threads()
    return f'{device}, {platform.machine()}, {threads} thread(s)'


# --- training ---


def train(cfg: Config, run: Run, study: Study) -> dict[str, Any]:
    """Trains, unless that is done; returns the checkpoint's name and the seconds."""
    folder = study.folder(run.name)
    prepare(cfg, run, study, 'train')
    updates = cfg.train_cfg.max_iters
    checkpoint = folder / f'iter_{updates}.pth'
    if not checkpoint.exists():
        cfg.resume = (folder / 'last_checkpoint').exists()
        started = time.monotonic()
        runner = Runner.from_cfg(cfg)
        runner.train()
        # What an interrupted training took as a whole is not known.
        seconds = None if cfg.resume else time.monotonic() - started
        write_atomically(folder / 'trained.json', json.dumps(seconds))
        close(runner)
    trained = folder / 'trained.json'
    seconds = json.loads(trained.read_text()) if trained.exists() else None
    return {'checkpoint': checkpoint.name, 'train_seconds': seconds}


def prepare(cfg: Config, run: Run, study: Study, what: str) -> None:
    """Sets what is the run's own."""
    cfg.work_dir = str(study.folder(run.name))
    # Runners of one name share loggers, hubs and visualizers.
    cfg.experiment_name = f'{run.name}_{what}_{os.getpid()}_{time.time_ns()}'
    cfg.visualizer.name = cfg.experiment_name
    cfg.randomness = {'seed': run.seed}
    if 'max_iters' in cfg.train_cfg:  # the last checkpoint is all that others need
        cfg.default_hooks.checkpoint.interval = min(200, cfg.train_cfg.max_iters)


def close(runner: Runner) -> None:
    """Closes the log file, one of which stays open otherwise."""
    for handler in list(runner.logger.handlers):
        handler.close()
        runner.logger.removeHandler(handler)


def weights_of(run: Run, study: Study, backbone: str, cfg: Config, kind: str) -> None:
    """Lets the backbone start where the run's settings say."""
    if 'start' in run.needs:
        start = study.checkpoint(run.needs['start'])
        models.start_from(cfg, backbone, start, kind)


# --- kinds of runs ---


def classifier(run: Run, study: Study) -> dict[str, Any]:
    """Trains a classifier and measures its accuracy."""
    cfg = models.classifier_config(run.settings, study.data, study.data_root)
    weights_of(run, study, run.settings['backbone'], cfg, 'classifier')
    found = train(cfg, run, study)
    test = models.classifier_config(run.settings, study.data, study.data_root)
    prepare(test, run, study, 'test')
    test.load_from = str(study.folder(run.name) / found['checkpoint'])
    test.test_dataloader.dataset.indices = 1000
    test.test_cfg = ConfigDict(type='TestLoop')
    test.train_cfg = test.train_dataloader = test.optim_wrapper = None
    test.param_scheduler = None
    metrics = run_plain(test)
    return {**found, 'metrics': metrics}


def run_plain(cfg: Config) -> dict[str, float]:
    """Tests by the config's loop; returns the metrics."""
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    close(runner)
    return {key: float(value) for key, value in metrics.items()}


def detector(run: Run, study: Study) -> dict[str, Any]:
    """Trains a detector and attacks it."""
    cfg = detector_config(run, study)
    found = train(cfg, run, study)
    return {**found, **attack(run, run, study, found['checkpoint'], ATTACKS)}


def detector_config(run: Run, study: Study) -> Config:
    """The config of a detector's run."""
    cfg = models.detector_config(run.settings, study.scale, study.data, study.data_root)
    weights_of(run, study, run.settings['backbone'], cfg, 'detector')
    return cfg


def attacked(run: Run, study: Study) -> dict[str, Any]:
    """Attacks a detector in another way."""
    source = study.record(run.needs['detector'])
    assert source
    trained = Run(source['name'], 'detector', source['seed'], source['settings'])
    return attack(trained, run, study, source['checkpoint'], run.settings['attacks'])


def attack(
    trained: Run,
    run: Run,
    study: Study,
    checkpoint: str,
    attacks: dict[str, Any],
) -> dict[str, Any]:
    """Evaluates a detector under attacks; returns what the report says.

    Args:
        trained: run of the detector.
        run: the evaluation.
        study: the study.
        checkpoint: its name in the detector's folder.
        attacks: name to config; without a radius, that of the training.
    """
    cfg = detector_config(
        Run(trained.name, 'detector', run.seed, trained.settings), study
    )
    prepare(cfg, run, study, 'attack')
    cfg.test_cfg.attacks = ConfigDict(
        {name: {'eps': EPS, **each} for name, each in attacks.items()}
    )
    path = study.folder(run.name) / 'robustness.json'
    cfg.test_cfg.report = str(path)
    cfg.load_from = str(study.folder(trained.name) / checkpoint)
    if not (path.exists() and json.loads(path.read_text())['complete']):
        run_test(cfg)
    found = json.loads(path.read_text())
    return {
        'report': path.name,
        'benign': found['benign']['metrics'],
        'attacks': [
            {
                key: each.get(key)
                for key in (
                    'name',
                    'norm',
                    'eps',
                    'num_steps',
                    'objective',
                    'metrics',
                    'checks',
                    'cost',
                )
            }
            for each in found['attacks']
        ],
    }


def autoattack(run: Run, study: Study) -> dict[str, Any]:
    """AutoAttack's APGD on a classifier."""
    source = study.record(run.needs['classifier'])
    assert source
    cfg = models.classifier_config(source['settings'], study.data, study.data_root)
    prepare(cfg, run, study, 'autoattack')
    settings = run.settings
    models.autoattack_config(cfg, settings['norm'], settings['sides'], study.scale)
    cfg.load_from = str(study.checkpoint(run.needs['classifier']))
    cfg.train_cfg = cfg.train_dataloader = cfg.optim_wrapper = None
    cfg.param_scheduler = None
    metrics = run_plain(cfg)
    return {'report': 'robustness.json', 'metrics': metrics}


def transfer(run: Run, study: Study) -> dict[str, Any]:
    """Learns the other classes from backbones of several eps (arXiv 2007.08489)."""
    cfg = models.transfer_config(
        run.settings['side'], study.scale, study.data, study.data_root
    )
    prepare(cfg, run, study, 'transfer')
    sweep = Sweep(
        cfg=cfg,
        checkpoints={
            float(eps): str(study.checkpoint(name)) for eps, name in run.needs.items()
        },
        modes=('fixed', 'full'),
        lrs=tuple(run.settings['lrs']),
        seeds=(run.seed,),
        norm='linf',
        metric='accuracy/top1',
        work_dir=study.folder(run.name),
    )
    found = run_sweep(sweep, ['experiments/evidence/run.py'])
    rows = {f'{row["mode"]}/{row["eps"]:g}': row for row in found.rows}
    return {
        'report': 'transfer.json',
        'metrics': {key: row['mean'] for key, row in rows.items()},
        'chosen_lrs': {key: row['lr'] for key, row in rows.items()},
    }


def matrix(run: Run, study: Study) -> dict[str, Any]:
    """Shows attacked images of every detector to all detectors."""
    detectors = []
    for title, name in run.needs.items():
        source = study.record(name)
        assert source
        cfg = detector_config(
            Run(name, 'detector', run.seed, source['settings']), study
        )
        prepare(cfg, run, study, 'matrix')
        cfg.train_cfg = cfg.train_dataloader = cfg.optim_wrapper = None
        cfg.param_scheduler = None
        cfg.test_cfg.pop('num_images')
        checkpoint = str(study.checkpoint(name))
        detectors.append(Detector(title, name, checkpoint, cfg))
    plan = Plan(
        sources=detectors,
        targets=detectors,
        attack='pgd',
        preset=attack_preset('pgd', eps=EPS, num_steps=10),
        work_dir=study.folder(run.name),
        seed=0,  # the same images as in every other evaluation
        num_images=study.scale.num_images,
        command=['experiments/evidence/run.py'],
    )
    run_matrix(plan)
    content = json.loads((study.folder(run.name) / 'transfer_matrix.json').read_text())
    names = list(run.needs)
    cells: dict[str, dict[str, float]] = {'clean': content['clean']}
    for each in content['entries']:
        cells.setdefault(each['source'], {})[each['target']] = each['value']
    found = {'sources': names, 'targets': names, 'matrix': cells}
    return {'report': 'transfer_matrix.json', 'matrix': found}


KINDS = {
    each.__name__: each
    for each in (classifier, detector, attacked, autoattack, transfer, matrix)
}
