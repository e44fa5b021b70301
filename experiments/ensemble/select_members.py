"""Which attacks an ensemble on detectors needs: every candidate on several detectors.

    python experiments/ensemble/select_members.py --work-dir work_dirs/members \
        --detector fcos configs/demo/standard_fcos.py work_dirs/demo/standard/last.pth \
        --detector frcnn configs/demo/standard_faster-rcnn.py work_dirs/frcnn/last.pth

Detections of every image under every candidate are kept in the work dir; what is there
is not attacked again, so that it can be interrupted and more candidates added.
tables.py beside this file selects from them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pickle
import time
from pathlib import Path
from typing import Any

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmrobust import cli
from mmrobust.analysis import Detections
from mmrobust.errors import ConfigError
from mmrobust.evaluation.box_analysis import ground_truth
from mmrobust.evaluation.loops import AttackTestLoop
from mmrobust.registry import ATTACKS, LOOPS

OBJECTIVES = (
    'total',
    'cls',
    'reg',
    'cwa',
    'vanish',
    'fabricate',
    'mislabel',
    'background',
    'dag',
    'objectness',
    'rpn',
    'ranking',
)
_SEARCH = {'type': 'mmrobust.APGD', 'random_start': True}
CANDIDATES: dict[str, dict[str, Any]] = {
    **{
        f'{objective}-{steps}': {
            **_SEARCH,
            'num_steps': steps,
            'objective': objective,
        }
        for steps in (10, 20, 50)
        for objective in OBJECTIVES
    },
    **{
        f'{objective}-20x2': {
            **_SEARCH,
            'num_steps': 20,
            'objective': objective,
            'restarts': 2,
        }
        for objective in OBJECTIVES
    },
    'pgd-20': {'type': 'mmrobust.PGD', 'num_steps': 20},
    'mim-20': {'type': 'mmrobust.TransferPGD', 'num_steps': 20},
    'radii-20': {
        **_SEARCH,
        'num_steps': 20,
        'radius_schedule': ((2, 0.3), (1.5, 0.3), (1, 0.4)),
    },
    'mislabel-least-20': {
        **_SEARCH,
        'num_steps': 20,
        'objective': {'name': 'mislabel', 'target': 'least-likely'},
    },
    'square-200': {'type': 'mmrobust.Square', 'num_queries': 200},
    'square-1000': {'type': 'mmrobust.Square', 'num_queries': 1000},
}
BENIGN = 'benign'
DEFAULT = tuple(f'{objective}-20' for objective in OBJECTIVES)


@LOOPS.register_module()
class PlainTestLoop(AttackTestLoop):
    """Without the analysis of boxes, which tables.py makes of all candidates."""

    def _start_analysis(self) -> None:
        return None


class KeepDetections(Hook):
    """Keeps what was detected in each image."""

    def __init__(self) -> None:
        self.found: dict[str, list[Detections]] = {}

    def after_test_iter(self, runner: Any, batch_idx: int, **given: Any) -> None:
        """Keeps the benign detections."""
        self._keep(BENIGN, given['outputs'])

    def after_attack_iter(self, runner: Any, batch_idx: int, **given: Any) -> None:
        """Keeps the attacked detections."""
        self._keep(given['attack'], given['outputs'])

    def _keep(self, name: str, outputs: Any) -> None:
        kept = self.found.setdefault(name, [])
        kept += [Detections.from_sample(output) for output in outputs]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/members')
    parser.add_argument(
        '--detector',
        nargs=3,
        action='append',
        required=True,
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
    )
    parser.add_argument(
        '--candidates', nargs='+', default=list(DEFAULT), choices=list(CANDIDATES)
    )
    parser.add_argument('--eps', type=float, default=8)
    parser.add_argument('--num-images', type=int, default=40)
    return parser.parse_args()


def main() -> None:
    """Attacks what has not been attacked yet."""
    args = parse_args()
    cli.check_work_dir(args.work_dir)
    for name, config, checkpoint in args.detector:
        folder = Path(args.work_dir) / f'{name}_eps{args.eps:g}'
        missing = [c for c in args.candidates if not (folder / f'{c}.pkl').exists()]
        if missing:
            runner = load(config, checkpoint, folder, args.num_images)
        for candidate in missing:
            started = time.monotonic()
            kept = attacked(runner, candidate, args.eps)
            with open(folder / f'{candidate}.pkl', 'wb') as file:
                pickle.dump(kept, file)
            took = time.monotonic() - started
            print(f'{name} eps {args.eps:g} {candidate}: {took:.0f} s', flush=True)


def load(config: str, checkpoint: str, folder: Path, num_images: int) -> Runner:
    """A runner with the detector's weights, and its ground truth on disk."""
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.load_from, cfg.log_level = str(folder), checkpoint, 'ERROR'
    cfg.default_hooks.pop('attack_visualization', None)
    # A name of its own, as mmengine wants, for every runner of the process.
    cfg.experiment_name = folder.name
    attacks = {'noise': {'type': 'mmrobust.RandomNoise'}}
    cfg.test_cfg = ConfigDict(
        type='mmrobust.PlainTestLoop', num_images=num_images, attacks=attacks
    )
    runner = Runner.from_cfg(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    truths = ground_truth(runner.test_loop.dataloader.dataset)
    classes = len(runner.test_loop.dataloader.dataset.metainfo['classes'])
    path = folder / 'truth.pkl'
    if path.exists() and len(pickle.loads(path.read_bytes())[0]) != num_images:
        raise ConfigError(f'{folder} is of another number of images than {num_images}.')
    path.write_bytes(pickle.dumps((truths, classes)))
    return runner


def attacked(runner: Runner, candidate: str, eps: float) -> dict[str, Any] | None:
    """Runs one candidate; None where the detector has no such objective."""
    loop, hook = runner.test_loop, KeepDetections()
    loop.attacks = {
        candidate: ATTACKS.build({**CANDIDATES[candidate], 'norm': 'linf', 'eps': eps})
    }
    runner.register_hook(hook)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            loop.run()
    except ConfigError as error:
        print(f'{candidate} is not possible: {error}', flush=True)
        return None
    finally:
        runner.hooks.remove(hook)
    (result,) = json.loads(Path(loop.report).read_text())['attacks']
    cost = {key: result['cost'][key] for key in ('forwards', 'backwards', 'seconds')}
    return {'found': hook.found[candidate], BENIGN: hook.found[BENIGN], **cost}


if __name__ == '__main__':
    cli.run(main)
