"""What options of speed bring, measured: counts by hand, and the command as a whole."""

import json
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from mmengine.config import Config
from mmrobust.attacks import PGD
from benchmarks import gpu
from benchmarks.subject import Subject
from benchmarks.gpu import attack_rows, matrix_peaks, operations, peak_format
from benchmarks.timing import Clock
from mmrobust.errors import ConfigError
from mmrobust.objective import NotStackedError
from torch import nn

CPU = torch.device('cpu')


@pytest.fixture
def config(coco, tmp_path):
    """Of the tiny FCOS."""
    return Config(tiny.runner_config(coco, tmp_path / 'work', tiny.fcos()))


class OneLayer(nn.Module):
    """A convolution 3 x 3 from 3 to 5 channels, whose output is the loss."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3, padding=1)

    def data_preprocessor(self, data):
        return {'inputs': torch.stack(data['inputs']), 'data_samples': None}

    def forward(self, inputs, data_samples, mode):
        return {'loss': self.layer(inputs).sum()}


def test_operations_are_those_of_the_convolutions():
    subject = SimpleNamespace(model=OneLayer(), classifier=False, device=CPU)
    work = operations(subject, [torch.rand(3, 8, 6)], [None], PGD(num_steps=4))
    once = 2 * (8 * 6) * (3 * 5) * (3 * 3)  # backwards to the input it is the same
    assert work == (4 + 2) * once + 4 * once


def test_a_peak_is_the_time_of_a_product(monkeypatch):
    seconds = iter(range(1000))
    monkeypatch.setattr(Clock, 'now', lambda self: next(seconds))
    peaks = matrix_peaks(CPU, 32, repeats=5)
    assert peaks == pytest.approx(dict.fromkeys(peaks, 2 * 32**3 * 5 / 1e12))
    assert set(peaks) == {'float32', 'bfloat16'}
    assert peak_format({'autocast': 'bfloat16'}, CPU) == 'bfloat16'
    assert peak_format({'channels_last': True}, CPU) == 'float32'
    assert peak_format({}, torch.device('cuda')) == 'tf32'  # of convolutions


def test_options_are_measured_beside_the_first(config, monkeypatch):
    subject = Subject(config, 'cpu', (64, 96), 2)
    times = iter([0, 9, 10, 12, 20, 28, 30, 31])  # seconds: first call, then one more
    monkeypatch.setattr(Clock, 'now', lambda self: next(times))

    def broken(*args):
        raise ConfigError('not on this machine.')

    chosen = {
        'none': {},
        'autocast': {'autocast': 'bfloat16'},
        'compile': {'compile': {'backend': broken}},
    }
    before = {k: v.clone() for k, v in subject.model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(gpu.Acceleration, 'prepared', _failing_to_compile)
        rows = list(attack_rows(subject, subject.batch, 2, 1, chosen))
    assert [row['option'] for row in rows] == list(chosen)
    plain, half, failed = rows
    assert [plain['first_seconds'], plain['seconds']] == [9, 2]
    assert [plain['images_per_second'], half['images_per_second']] == [1, 2]
    assert [plain['speed_up'], half['speed_up']] == [1, 2]
    assert half['tflops'] == 2 * plain['tflops'] > 0
    assert plain['reached'] == 1
    assert half['reached'] != 1
    assert half['reached'] == pytest.approx(1, abs=0.3)
    assert failed['failed'] == 'no compiler'
    assert 'speed_up' not in failed
    for name, value in subject.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not list(attack_rows(subject, subject.batch, late=lambda: True))


def test_what_cannot_be_stacked_says_so(config, monkeypatch):
    def refuse(*args):
        raise NotStackedError('what it gives for an image depends on others')

    monkeypatch.setattr(gpu, 'find_seams', refuse)
    subject = Subject(config, 'cpu', (64, 96), 2)
    (row,) = attack_rows(subject, subject.batch, own_losses=True)
    assert row['failed'] == 'what it gives for an image depends on others'
    assert row['batch'] == 2


prepared = gpu.Acceleration.prepared


def _failing_to_compile(self, model):
    if self.compile is not None:
        raise ConfigError('no compiler')
    return prepared(self, model)


def test_the_command_measures_everything(
    config, trained, tmp_path, monkeypatch, capsys
):
    config.dump(tmp_path / 'tiny.py')
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    path = str(tmp_path / 'tiny.py')
    line = f'x --models {path} --size 64 96 --batch-size 2 --steps 1 --repeats 1'
    line += f' --device cpu --peak-size 64 --json {tmp_path}/found.json'
    line += f' --effect {path} {trained} --num-images 3 --options none autocast'
    monkeypatch.setattr(sys, 'argv', line.split())
    gpu.main()
    found = json.loads((tmp_path / 'found.json').read_text())
    rows = found['rows']
    kinds = ['PGD-1', 'PGD-1, eps 8, 3 images', 'FreeAT update']
    kinds += ['PGD-AT update, 3 steps', 'PGD-1, own losses', 'PGD-1, one loss']
    assert [row['what'] for row in rows] == [k for kind in kinds for k in [kind] * 2]
    assert [row['option'] for row in rows] == ['none', 'autocast'] * 6
    assert [row.get('batch') for row in rows[::2]] == [1, None, 2, 2, 2, 2]
    for row in (*rows[:2], *rows[-4:]):
        peak = found['matrix_peaks_tflops'][row['peak']]
        assert row['share'] == pytest.approx(row['tflops'] / peak)
    assert [rows[0]['peak'], rows[1]['peak']] == ['float32', 'bfloat16']
    for row in rows[2:4]:
        assert 0 <= row['AP'] < 0.8 * row['benign']
    assert rows[2]['benign'] == rows[3]['benign']
    table = [row for row in capsys.readouterr().out.split('\n') if row.startswith('|')]
    assert len(table) == 2 + len(rows)
