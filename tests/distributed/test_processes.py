"""Two processes train like one and evaluate like one, also after one has died."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import process_jobs
import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork'),
    # The first test waits for all processes, on a loaded machine for long.
    pytest.mark.timeout(900),
]
pytest.importorskip('pyautoattack')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where the processes have left what they did."""
    folder = tmp_path_factory.mktemp('processes')
    paths = [str(Path(__file__).parents[2]), os.environ.get('PYTHONPATH', '')]
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(paths),
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
    }
    command = [sys.executable, '-W', 'ignore', process_jobs.__file__, str(folder)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope='module')
def found(folder):
    """How the processes ended, and what they gave."""
    return dict(json.loads((folder / 'found.json').read_text()))


def statuses(found, name):
    return [process['status'] for process in found[name]]


# ---------------------------------------------------------------------------- training

PAIRS = [(name, kind) for name, kinds in process_jobs.EQUAL.items() for kind in kinds]


@pytest.fixture(scope='module')
def trained(folder, found):
    """Weights of one process, and of each of two."""
    for name in ('equal, one', 'equal, two'):
        assert not any(statuses(found, name)), found[name][0]['errors']
    return [torch.load(folder / f'{name}.pth') for name in ('one', 'two', 'two1')]


@pytest.mark.parametrize(('name', 'kind'), PAIRS)
def test_training_equals_one_process_with_the_doubled_batch(trained, name, kind):
    start = torch.cat([w.flatten() for w in trained[0][f'{name} start']]).double()
    single, double, other = (
        torch.cat([w.flatten() for w in each[f'{name} {kind}']]).double()
        for each in trained
    )
    assert torch.equal(double, other)
    # Rounding is at 1e-7 of the weights, what they have moved a tenth of them. A pixel
    # whose gradient is as small as its rounding may step the other way: 4e-5.
    difference = (single - double).norm() / (single - start).norm()
    assert difference < 2e-4


def test_processes_with_different_numbers_of_attacked_images(found):
    """Their losses are averaged over the processes, so they need as many of them."""
    assert statuses(found, 'share') == [0, 0], found['share'][0]['errors']
    first, second = (process['result'] for process in found['share'])
    for kind in ('pgd', 'mtd'):
        assert {0, 1, 2} <= {*first[kind][0], *second[kind][0]}
        assert first[kind][0] != second[kind][0]
        assert first[kind][1] == second[kind][1]


def test_processes_skip_alike_and_stop_alike(found):
    """Faults of one process only; none of them waits for the other for ever."""
    assert statuses(found, 'faults') == [0, 0], found['faults'][0]['errors']
    first, second = (process['result'] for process in found['faults'])
    assert first['weights'] == second['weights']
    # Updates 1 and 2 were faulty on process 0, update 4 on process 1.
    changed = [True, False, False, True, False, True, True, False, False]
    assert first['changed'] == second['changed'] == changed
    # From update 7 on process 1 is faulty; both stop at the third such update.
    assert first['stopped'] == second['stopped'] == [9, True]
    assert first['finite'] == second['finite'] is True


@pytest.mark.parametrize('name', list(process_jobs.RESUMED))
def test_two_processes_resume_exactly(found, name):
    assert statuses(found, 'resumed') == [0, 0], found['resumed'][0]['errors']
    ranks = [process['result'][name] for process in found['resumed']]
    for whole, rest in ranks:
        assert rest == whole
    (first, _), (second, _) = ranks
    # States that are equal could not tell whose was restored. (Weights are equal,
    # BatchNorm's statistics are not.)
    for key in ('weights', 'deltas', 'drawn'):
        assert first[key] != second[key]


@pytest.mark.parametrize('kind', ['free', 'pgd'])
def test_shared_weights_train_like_whole_ones(folder, found, kind):
    """FSDP, also with activations that are computed again, and the optimizer's state.

    FCOS has weights that are single numbers; its first stage does not learn.
    """
    assert statuses(found, 'shared out') == [0, 0], found['shared out'][0]['errors']
    shared = [process['result'][f'fsdp {kind}'] for process in found['shared out']]
    plain = found['shared out'][0]['result'][f'ddp {kind}']
    assert sum(each['held'] for each in shared) == plain['held']
    for each in shared:
        assert each['held'] == pytest.approx(plain['held'] / 2, rel=0.01)
        # Before they are clipped at 1, alike in both.
        assert each['norms'] == pytest.approx(plain['norms'], rel=1e-5)
        assert min(each['norms']) > 1
    ours, theirs = (
        torch.load(folder / f'{name}_{kind}.pth') for name in ('fsdp', 'ddp')
    )
    rates = [[g['lr'] for g in c['optimizer']['param_groups']] for c in (ours, theirs)]
    assert rates[0] == rates[1]
    for of in (of_model, of_optimizer):
        one, two = of(ours), of(theirs)
        assert one.keys() == two.keys()
        for name, value in two.items():
            assert one[name].shape == value.shape, name
            assert torch.allclose(one[name], value, rtol=1e-4, atol=1e-5), name


def of_model(checkpoint):
    """Weights by the names that they have without DDP."""
    states = checkpoint['state_dict']
    return {name.removeprefix('module.'): value for name, value in states.items()}


def of_optimizer(checkpoint):
    """States by the number of the weight and their name."""
    states = checkpoint['optimizer']['state']
    return {(i, k): v for i, state in states.items() for k, v in state.items()}


def test_a_fault_in_the_part_of_one_process(found):
    """None steps, and none waits for the other."""
    for process in found['shared out']:
        for kind in ('free', 'pgd'):
            result = process['result'][f'fsdp {kind}']
            assert (result['skipped'], result['kept']) == (1, True)


def test_shared_weights_resume_exactly(found):
    """From the middle of the replays of a batch, with the perturbation."""
    ended = found['shared, resumed']
    assert statuses(found, 'shared, resumed') == [0, 0], ended[0]['errors']
    (whole, rest), (other, other_rest) = (process['result'] for process in ended)
    assert rest == whole
    assert other_rest == other
    assert whole[0] == other[0]
    assert whole[1] != other[1]  # each has a perturbation of its own


def test_a_study_in_two_processes(folder, found):
    """The main one writes; a backbone that is fixed after DDP wrapped it stays so."""
    assert statuses(found, 'transfer') == [0, 0], found['transfer'][0]['errors']
    content = json.loads((folder / 'transfer/work/transfer.json').read_text())
    assert content['complete']
    assert content['environment']['processes'] == 2
    fixed, full = content['runs']
    assert fixed['updates'] == 4  # 18 pictures, two times 6 per update
    assert fixed['backbone_sha256'] == content['checkpoints'][0]['backbone_sha256']
    assert full['backbone_sha256'] != fixed['backbone_sha256']


def test_the_tool_trains_on_cpus(folder, found):
    """As its launcher asks for, although the config names NCCL."""
    assert statuses(found, 'training') == [0, 0], found['training'][0]['errors']
    assert (folder / process_jobs.CHECKPOINT).is_file()


def test_the_launcher_tells_what_it_needs(found):
    (alone,) = found['launcher, alone']
    assert alone['status'] == 2
    assert '--launcher pytorch needs RANK' in alone['errors']


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_start_on_cpus(found, launcher):
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=False,
        device_ids=None,
    )
    assert statuses(found, launcher) == [0, 0], found[launcher][1]['errors']
    results = [process['result'] for process in found[launcher]]
    assert results == [[0, 2, wrapper], [1, 2, wrapper]]


# ------------------------------------------------------------------ the same evaluation


def report(folder, name):
    return process_jobs.timeless(
        json.loads((folder / name / 'robustness.json').read_text())
    )


def test_validation_in_training_equals_one_process(folder, found):
    single = report(folder, 'one')
    (attack,) = (each for each in single['attacks'] if each['name'] == 'cls')
    metrics = single['benign']['metrics']
    expected = {**metrics, **{f'cls/{k}': v for k, v in attack['metrics'].items()}}
    assert metrics['coco/bbox_mAP'] > 0.3
    assert attack['metrics']['coco/bbox_mAP'] < 0.8 * metrics['coco/bbox_mAP']
    for rank in range(2):
        path = folder / 'work' / f'validation_{rank}.json'
        assert json.loads(path.read_text()) == expected


def test_uneven_classifiers(found):
    """Five pictures on two processes."""
    (single,) = (process['result'] for process in found['one_classifier'])
    first, second = (process['result'] for process in found['two_classifiers'])
    shared = ('metrics', 'iter', 'weights', 'forwards', 'watched')
    assert all(first[key] == second[key] for key in shared)
    for key in ('metrics', 'forwards', 'watched'):
        assert first[key] == single[key]
    assert (single['iter'], first['iter']) == (10, 6)


def test_every_image_is_seen_once_by_one_of_two_processes(found):
    """In each of two epochs; the first one again where five are shared by two."""
    (single,) = (process['result']['seen'] for process in found['one_classifier'])
    shares = [process['result']['seen'] for process in found['two_classifiers']]
    assert single == ['0', '1', '2', '3', '4'] * 2
    assert shares == [['0', '2', '4'] * 2, ['1', '3', '0'] * 2]


def test_uneven_epochs_are_refused(found):
    """And evaluations, whose results would be put together in a wrong order."""
    for process in found['uneven']:
        training, evaluation = process['result']
        assert 'have from 2 to 3 updates per epoch' in training
        assert 'set sampler.round_up=True' in evaluation


def test_the_images_are_the_same(folder):
    """Which figures round away. (A process that was killed may leave a hidden part.)"""
    ours, theirs = (
        {
            path.name: np.load(path)['image']
            for path in folder.glob(f'{size}/adv/cls/[!.]*.npz')
        }
        for size in ('two', 'one')
    )
    assert ours.keys() == theirs.keys()
    assert len(ours) == 3
    for name, image in ours.items():
        assert (image == theirs[name]).mean() > 0.98


# ------------------------------------------------------------------------ when one dies

KILLED = {
    'description, first killed': 0,
    'benign, second killed': 1,
    'waiting, first killed': 0,
    'choice, first killed': 0,
    'shards, second killed': 1,
    'alone, killed': 0,
}


def test_the_report_is_the_same_afterwards(folder, found):
    """After ends in every part, also when another number of processes goes on."""
    for name, victim in KILLED.items():
        assert found[name][victim]['status'] == -9
    assert 'RuntimeError: out of luck' in found['scoring, second fails'][1]['errors']
    single = report(folder, 'one')
    assert single['complete']
    assert single['dataset']['num_images'] == 3
    for name in ('one', 'two', 'two_then_one', 'one_then_two'):
        assert not any(statuses(found, name)), found[name][0]['errors']
        assert report(folder, name) == single, name
        assert not (folder / name / 'robustness.records').exists()


def test_shards_are_the_same_afterwards(found):
    (single,) = found['shards, one']
    assert single['status'] == 0
    assert [each['result'] for each in found['shards, two']] == [single['result']] * 2
