"""A run resumes from its own checkpoint, and a hostile file is still refused."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmrobust.compat import allow_mmengine_checkpoints, checkpoints

PROTECTED = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


def read(path: Path) -> Any:
    """What mmrobust reads with, whatever the version of torch."""
    if PROTECTED:
        return torch.load(path, weights_only=True)
    return torch.load(path, pickle_module=checkpoints)


class Points(Dataset):
    """Eight points of the plane."""

    metainfo: ClassVar[dict] = {
        'classes': ('a', 'b'),
        'palette': [(1, 2, 3), (4, 5, 6)],
    }

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return {'inputs': torch.tensor([index / 8, 1.0]), 'data_samples': index}


class Line(BaseModel):
    """A linear model whose target is the sum of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.line = nn.Linear(2, 1)

    def forward(
        self, inputs: list[Tensor], data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        inputs = torch.stack(inputs)
        out = self.line(self.norm(inputs))
        if mode == 'loss':
            return {'loss': (out - inputs.sum(dim=1, keepdim=True)).square().mean()}
        return list(out)


class Scalars(BaseMetric):
    """A metric of every kind of number that evaluations return."""

    default_prefix = 'toy'

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(len(data_samples))

    def compute_metrics(self, results: list) -> dict:
        total = np.sum(results)
        return {'double': np.float64(total), 'single': np.float32(0.5), 'count': total}


def runner(work_dir: Path, **options: Any) -> Runner:
    data = {'batch_size': 4, 'num_workers': 0, 'dataset': Points()}
    return Runner(
        model=Line(),
        work_dir=str(work_dir),
        train_dataloader={**data, 'sampler': {'type': 'DefaultSampler'}},
        val_dataloader={**data, 'sampler': {'type': 'DefaultSampler'}},
        train_cfg={'by_epoch': True, 'max_epochs': 3},
        val_cfg={},
        val_evaluator=[Scalars()],
        optim_wrapper={
            'optimizer': {'type': 'AdamW', 'lr': 0.1},
            'clip_grad': {'max_norm': 1.0},
        },
        param_scheduler=[
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 2},
            {'type': 'MultiStepLR', 'milestones': [1, 2]},
            {'type': 'CosineAnnealingLR', 'T_max': 3},
        ],
        default_hooks={
            'logger': {'type': 'LoggerHook', 'interval': 1},
            'checkpoint': {
                'type': 'CheckpointHook',
                'interval': 1,
                'save_best': 'toy/double',
                'rule': 'greater',
            },
        },
        custom_hooks=[{'type': 'EMAHook'}],
        experiment_name=f'compat_{work_dir.name}',
        randomness={'seed': 0},
        log_level='ERROR',
        **options,
    )


def test_a_run_resumes(tmp_path: Path) -> None:
    assert allow_mmengine_checkpoints() is PROTECTED
    torch.manual_seed(0)
    whole = runner(tmp_path / 'whole')
    whole.train()
    # As torch reads files by default, and with nothing but the protected way.
    path = tmp_path / 'whole' / 'epoch_1.pth'
    saved = read(path)
    history = saved['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert len(history.data[0]) == 2
    assert history.statistics('min') == history.data[0].min()
    assert saved['message_hub']['log_scalars']['val/toy/double'].current() == 8.0
    assert saved['message_hub']['runtime_info']['best_score'] == 8.0

    cut = runner(tmp_path / 'cut', load_from=str(path), resume=True)
    cut.train()
    assert (cut.epoch, cut.iter) == (3, 6)
    values = cut.message_hub.get_scalar('train/loss').data[0]
    assert len(values) == 6
    np.testing.assert_allclose(
        values, whole.message_hub.get_scalar('train/loss').data[0], rtol=1e-6
    )
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(cut.model.state_dict()[key], value)


class Attack:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'attack',
    [
        Attack(os.system, 'touch {file}'),
        Attack(eval, "open('{file}', 'w')"),
        Attack(open, '{file}', 'w'),
        Attack(getattr, HistoryBuffer, '__init__'),
        Attack(getattr, np.ndarray, 'tofile'),
    ],
    ids=['system', 'eval', 'open', 'attribute of ours', 'attribute of numpy'],
)
def test_code_is_refused(attack: Attack, zipped: bool, tmp_path: Path) -> None:
    allow_mmengine_checkpoints()
    target = tmp_path / 'proof'
    function, arguments = attack.call
    filled = [a.format(file=target) if isinstance(a, str) else a for a in arguments]
    path = tmp_path / 'hostile.pth'
    content = {'state_dict': {}, 'meta': Attack(function, *filled)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        read(path)
    assert not target.exists()


@pytest.mark.skipif(not PROTECTED, reason='torch before 2.6 does not protect')
def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    allow_mmengine_checkpoints()
    path = tmp_path / 'objects.pth'
    torch.save({'meta': np.array([{}, None], dtype=object)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)


def test_files_of_both_numpy_generations(tmp_path: Path) -> None:
    allow_mmengine_checkpoints()
    path = tmp_path / 'arrays.pth'
    content = {'a': np.arange(3.0), 'b': np.float32(1.5), 'c': np.array([True, False])}
    torch.save(content, path, pickle_protocol=2, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    new, old = b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n'
    here, there = (new, old) if new in raw else (old, new)
    for data in (raw, raw.replace(here, there)):
        path.write_bytes(data)
        loaded = read(path)
        assert loaded['a'].tolist() == [0.0, 1.0, 2.0]
        assert loaded['b'] == np.float32(1.5)
        assert loaded['c'].tolist() == [True, False]
    assert raw != raw.replace(here, there)


@pytest.mark.skipif(not PROTECTED, reason='torch before 2.6 does not protect')
def test_calling_again_adds_nothing() -> None:
    allow_mmengine_checkpoints()
    before = collections.Counter(torch.serialization.get_safe_globals())
    allow_mmengine_checkpoints()
    assert collections.Counter(torch.serialization.get_safe_globals()) == before
