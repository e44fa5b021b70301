"""Counts which configs robustify converts, and whether their schedules hold.

Every config of a folder is read, made robust and stepped through its whole schedule,
with a few updates per batch in place of the data's. Nothing is built or trained.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import Counter
from pathlib import Path

import mmdet
import mmrobust  # noqa: F401  (it provides mmcv's operators)
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmrobust.errors import ConfigError
from mmrobust.recipe import robustify
from mmrobust.training import Rates, follow_rates

MMDET = Path(mmdet.__file__).parent / '.mim' / 'configs'
# Batches in a pass; and the most updates, of loops that count those.
_BATCHES, _UPDATES = 8, 20000
_MULTIPLIER = 0.1


def main() -> None:
    """Reads the command line and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', nargs='?', default=str(MMDET))
    parser.add_argument('--list', action='store_true', help='name every config')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    found: Counter[str] = Counter()
    for path in sorted(Path(args.folder).rglob('*.py')):
        if '_base_' in path.parts:
            continue
        outcome = examine(str(path))
        found[outcome] += 1
        if args.list:
            print(f'{path.relative_to(args.folder)}: {outcome}')
    for outcome, count in found.most_common():
        print(f'{count:5} {outcome}')
    print(f'{sum(found.values()):5} configs')


def examine(path: str) -> str:
    """Says in a few words what becomes of a config.

    Args:
        path: of a file.
    """
    try:
        cfg = robustify(path)
    except ConfigError as error:
        return f'refused: {_general(str(error))}'
    except Exception as error:
        return f'fails: {type(error).__name__}'
    try:
        rest, backbone = _rates(cfg)
    except Exception as error:
        return f'converted, and its schedule fails: {type(error).__name__}'
    if not np.allclose(backbone, _MULTIPLIER * rest, rtol=0.01):
        return 'converted, and its schedule breaks the ratio of backbone and rest'
    if rest.max() > 1.01 * cfg.optim_wrapper.optimizer.lr:
        return 'converted, and its schedule exceeds the learning rate'
    return 'converted'


def _general(sentence: str) -> str:
    """Leaves out what differs from config to config."""
    sentence = re.sub(r"'[^']*'|\([^)]*\)|\b[A-Z]\w*[a-z][A-Z]\w*\b", '*', sentence)
    return sentence.split(':')[0][:90]


def _rates(cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Steps a config's schedulers through a training."""
    lr = cfg.optim_wrapper.optimizer.lr
    loop = cfg.train_cfg
    length = _BATCHES * loop.adversary.get('replays', 1)
    epochs = loop.get('max_epochs', 1)
    updates = min(loop.get('max_iters', epochs * length), _UPDATES)
    schedulers = cfg.get('param_scheduler') or []
    init_default_scope('mmdet')
    return follow_rates(
        schedulers, Rates(lr, lr * _MULTIPLIER), updates, epochs, length
    )


if __name__ == '__main__':
    main()
