"""What a run saves is read, and a hostile file is still refused."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmrobust.compat import allow_mmengine_checkpoints, checkpoints

PROTECTED = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


def read(path):
    """What mmrobust reads with, whatever the version of torch."""
    if PROTECTED:
        return torch.load(path, weights_only=True)
    return torch.load(path, pickle_module=checkpoints)


def test_what_a_run_saves_is_read(tmp_path):
    """A message hub's histories and metrics; real runs resume in tests/training."""
    assert allow_mmengine_checkpoints() is PROTECTED
    history = HistoryBuffer()
    for value in (3.0, 1.0):
        history.update(value)
    info = {
        'best_score': np.float64(8),
        'single': np.float32(0.5),
        'count': np.sum([2]),
    }
    hub = {'log_scalars': {'train/loss': history}, 'runtime_info': info}
    torch.save({'message_hub': hub, 'meta': {'epoch': 1}}, tmp_path / 'epoch_1.pth')
    found = read(tmp_path / 'epoch_1.pth')['message_hub']
    assert found['runtime_info'] == info
    loaded = found['log_scalars']['train/loss']
    assert isinstance(loaded, HistoryBuffer)
    assert loaded.data[0].tolist() == [3, 1]
    assert loaded.statistics('min') == loaded.statistics('current') == 1


class Attack:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
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
def test_code_is_refused(attack, zipped, tmp_path):
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
def test_arrays_of_objects_are_refused(tmp_path):
    allow_mmengine_checkpoints()
    path = tmp_path / 'objects.pth'
    torch.save({'meta': np.array([{}, None], dtype=object)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)


def test_files_of_both_numpy_generations(tmp_path):
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
def test_calling_again_adds_nothing():
    allow_mmengine_checkpoints()
    before = collections.Counter(torch.serialization.get_safe_globals())
    allow_mmengine_checkpoints()
    assert collections.Counter(torch.serialization.get_safe_globals()) == before
