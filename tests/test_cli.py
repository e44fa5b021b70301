"""What the command-line tools share: one sentence per mistake, options that arrive."""

import argparse
import errno
import json
import logging
import os
import pickle
import re
import shutil
from contextlib import suppress

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmrobust import cli
from mmrobust.compat.checkpoints import NO_TRUST, TRUST, reads_safely
from mmrobust.errors import ConfigError, doing, short

# --------------------------------------------------------------- run, as_sentence


def fails_with(error):
    def main():
        raise error

    return main


def test_a_mistake_is_one_line_and_status_2(capsys):
    def main():
        with doing('testing'):  # which is no news to the user
            raise ConfigError('eps=-1\n is   negative.')

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr() == ('', 'error: eps=-1 is negative.\n')


@pytest.mark.parametrize('kind', [RuntimeError, ValueError])
def test_any_other_error_keeps_its_traceback(kind, tmp_path, capsys):
    """Behind what was going on, the outermost first; the log file has it, too."""
    log = tmp_path / 'log.txt'
    name = f'cli-{tmp_path.name}'
    MMLogger.get_instance(name, log_file=str(log))

    def main():
        with doing('testing'), doing('attacking image 17 with pgd'):
            raise kind('x')

    with pytest.raises(kind, match='x'):
        cli.run(main)
    assert capsys.readouterr().err == (
        'error while testing:\nerror while attacking image 17 with pgd:\n'
    )
    logging.shutdown()
    assert 'Traceback (most recent call last)' in log.read_text()
    del MMLogger._instance_dict[name]


def test_a_mistake_has_a_traceback_on_request(monkeypatch, capsys):
    main = fails_with(MemoryError('too large'))
    with pytest.raises(SystemExit):
        cli.run(main)
    assert capsys.readouterr().err.startswith('error: the memory is not enough (too')
    monkeypatch.setenv(cli.TRACEBACK, '1')
    with pytest.raises(MemoryError):
        cli.run(main)


def test_a_short_text_has_one_line_and_no_addresses():
    assert short(f'{object()}\n  is wrong.') == '<object> is wrong'
    assert len(short('x ' * 500)) < 300


@pytest.mark.parametrize('error', [SystemExit(0), KeyboardInterrupt()])
def test_exits_pass_through(error):
    with pytest.raises(type(error)) as caught:
        cli.run(fails_with(error))
    assert caught.value is error


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.skipif(not reads_safely(), reason='torch before 2.6 has no such switch')
@pytest.mark.parametrize('trusted', [False, True])
def test_no_file_runs_code_in_a_tool(tmp_path, monkeypatch, trusted):
    """Also where someone asks torch for no protection, as some of mmengine's do."""
    monkeypatch.setenv(NO_TRUST, '0')
    monkeypatch.setenv(TRUST, '1' if trusted else '0')
    proof, path = tmp_path / 'proof', tmp_path / 'hostile.pth'
    torch.save(Hostile(f'touch {proof}'), path)

    def main():
        with suppress(pickle.UnpicklingError):
            torch.load(path, weights_only=False)

    cli.run(main)
    assert proof.exists() == trusted


MISSING = "[Errno 2] No such file or directory: '/nowhere/all.json'"
PACKED = """Caught AssertionError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 1
AssertionError: failed to load image: /data/a b.jpg
"""


@pytest.mark.parametrize(
    ('error', 'sentence'),
    [
        (
            FileNotFoundError(2, 'No such file', '/nowhere/all.json'),
            '/nowhere/all.json does not exist: check the path, or data_root in the '
            'config.',
        ),
        (
            FileNotFoundError(f'CocoDataset: {MISSING}'),  # of a registry
            '/nowhere/all.json does not exist: check the path, or data_root in the '
            'config.',
        ),
        (
            PermissionError(errno.EACCES, 'Permission denied', '/data/x'),
            'no right to use /data/x: choose another place or change it.',
        ),
        (
            OSError(errno.ENOSPC, 'No space left on device', '/disk/x'),
            'no space left on the device while writing /disk/x.',
        ),
        (
            OSError(errno.ENOSPC, 'No space left on device'),
            'no space left on the device while writing a file.',
        ),
        (
            json.JSONDecodeError('Expecting value', '[', 1),
            'an annotation file is no valid JSON (Expecting value: line 1 column 2 '
            '(char 1)): is it complete?',
        ),
        (
            AssertionError(PACKED),
            'image /data/a b.jpg cannot be decoded: replace or remove it.',
        ),
    ],
)
def test_errors_that_a_user_can_mend(error, sentence):
    assert cli.as_sentence(error) == sentence


def test_an_unknown_name_in_a_registry():
    with pytest.raises(KeyError) as caught:
        MODELS.build(dict(type='mmdet.FCOSS'))
    sentence = str(cli.as_sentence(caught.value))
    assert re.fullmatch(
        r"mmdet.FCOSS is not in the .* registry \(did you mean 'FCOS'\?\): check the "
        r'name\.',
        sentence,
    )


def test_a_package_that_fails_to_import_says_why(tmp_path, monkeypatch):
    """mmengine keeps to itself why, both of a scope and of custom_imports."""
    for name in ('lacking', 'lacking_part'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text('import nowhere_installed\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyError) as caught:
        MODELS.build(dict(type='lacking.Detector'))
    sentence = str(cli.as_sentence(caught.value))
    assert sentence.endswith(
        "since lacking cannot be imported: No module named 'nowhere_installed'."
    )
    text = "model = 1\ncustom_imports = dict(imports=['lacking_part'])\n"
    with pytest.raises(
        ConfigError,
        match="Failed to import lacking_part: No module named 'nowhere_installed'",
    ):
        cli.read_config(write(tmp_path, text))


# -------------------------------------------------------------------- read_config


def write(folder, text, name='config.py'):
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('model = dict(\n', r'cannot be read: .*\(<unknown>, line 1\)'),
        ('x = 1\n', 'has no model'),
        ('', 'has no model'),
        ('model = unknown\n', "cannot be read: name 'unknown' is not defined"),
        ("_base_ = './gone.py'\nmodel = 1\n", 'gone.py'),
        ("_base_ = 'mmdet::gone/gone.py'\nmodel = 1\n", 'gone'),
        (
            "model = 1\ncustom_imports = dict(imports=['nonexistent_package'])\n",
            'nonexistent_package',
        ),
        ("model = 1 + 'a'\n", 'cannot be read: unsupported operand'),
        ('model = 1 / 0\n', 'cannot be read: division by zero'),
        ('model = [][0]\n', 'cannot be read: list index out of range'),
    ],
)
def test_a_config_that_cannot_be_read(tmp_path, text, sentence):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        cli.read_config(path)
    assert 'config.py' in str(caught.value)
    assert '\n' not in str(cli.as_sentence(caught.value))


def test_a_config_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match='does not exist: check the path'):
        cli.read_config(str(tmp_path / 'gone.py'))
    with pytest.raises(ConfigError, match='does not exist: check the path'):
        cli.read_config(str(tmp_path))  # a folder
    with pytest.raises(ConfigError, match='cannot be read'):
        cli.read_config(write(tmp_path, 'weights', 'checkpoint.pth'))


# ------------------------------------------------------------------ merge_options

TEXT = """
data_root = 'data/coco/'
model = dict(type='FCOS')
train_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(
    type='CocoDataset', data_root=data_root, ann_file='a.json')))
val_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[
    dict(data_root=data_root, ann_file=data_root + 'b.json'),
    dict(data_root='data/coco2/', ann_file='data/coco2/c.json')]))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'b.json')
test_evaluator = [val_evaluator, dict(type='Other', ann_file='elsewhere/b.json')]
"""


@pytest.mark.parametrize('root', ['new/place', 'new/place/'])
def test_data_root_reaches_datasets_and_evaluators(tmp_path, root):
    cfg = Config.fromfile(write(tmp_path, TEXT))
    cli.merge_options(cfg, {'data_root': root})
    assert cfg.data_root == 'new/place/'
    train = cfg.train_dataloader.dataset.dataset
    assert (train.data_root, train.ann_file) == ('new/place/', 'a.json')
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        first, second = loader.dataset.datasets
        assert first.data_root == 'new/place/'
        assert first.ann_file == 'new/place/b.json'
        # Another dataset, whose name begins alike.
        assert second.data_root == 'data/coco2/'
        assert second.ann_file == 'data/coco2/c.json'
    assert cfg.val_evaluator.ann_file == 'new/place/b.json'
    assert cfg.test_evaluator[0].ann_file == 'new/place/b.json'
    assert cfg.test_evaluator[1].ann_file == 'elsewhere/b.json'


def test_data_root_without_a_slash(tmp_path):
    text = TEXT.replace("'data/coco/'\n", "'data/coco'\n").replace(
        "data_root + 'b.json'", "data_root + '/b.json'"
    )
    cfg = Config.fromfile(write(tmp_path, text))
    cli.merge_options(cfg, {'data_root': 'new'})
    first, second = cfg.val_dataloader.dataset.datasets
    assert (first.data_root, first.ann_file) == ('new', 'new/b.json')
    assert second.data_root == 'data/coco2/'


def test_options_are_merged_and_win_over_data_root(tmp_path):
    options = {'model.type': 'VFNet', 'new.key': 1, 'val_evaluator.ann_file': 'my.json'}
    for root, expected in ((None, 'data/coco/b.json'), ('new/', 'new/b.json')):
        cfg = Config.fromfile(write(tmp_path, TEXT))
        given = {} if root is None else {'data_root': root}
        cli.merge_options(cfg, {**options, **given})
        assert (cfg.model.type, cfg.new.key) == ('VFNet', 1)
        assert cfg.val_evaluator.ann_file == 'my.json'
        assert cfg.test_evaluator[0].ann_file == expected


def test_a_data_root_that_nobody_reads_is_refused(tmp_path):
    """Otherwise the tools would go on with the data that the config names."""
    cfg = Config.fromfile(write(tmp_path, 'model = dict()\n'))
    with pytest.raises(ConfigError, match='data_root is no setting of this config'):
        cli.merge_options(cfg, {'data_root': 'new/'})


# --------------------------------------------------------- work dir, load_config


def test_a_work_dir_is_made(tmp_path):
    cli.check_work_dir(str(tmp_path / 'a' / 'b'))
    assert list((tmp_path / 'a').iterdir()) == [tmp_path / 'a' / 'b']
    assert not list((tmp_path / 'a' / 'b').iterdir())
    cli.check_work_dir(str(tmp_path / 'a' / 'b'))


def test_a_work_dir_that_cannot_be_written(tmp_path):
    """A regular file stands in the way: nobody's rights help, root's neither."""
    file = tmp_path / 'file'
    file.write_text('')
    for path in (file, file / 'below'):
        with pytest.raises(ConfigError, match=r'cannot be written .* with --work-dir'):
            cli.check_work_dir(str(path))
    with pytest.raises(ConfigError, match=r'folder of --report .* with --report'):
        cli.check_work_dir(str(file), 'folder of --report', '--report')


def test_a_full_disk(tmp_path, monkeypatch):
    usage = argparse.Namespace(free=3 * 2**20)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(ConfigError, match='has only 3 MiB left: free some space'):
        cli.check_work_dir(str(tmp_path))


def arguments(config, **kwargs):
    defaults = dict(launcher='none', cfg_options=None, work_dir=None, local_rank=0)
    return argparse.Namespace(config=config, **{**defaults, **kwargs})


def test_the_work_dir_is_decided_as_in_mmdet(tmp_path, monkeypatch):
    """Command line before config before the config's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '0')  # as torchrun does
    plain = write(tmp_path, 'model = dict()\n', 'plain.py')
    named = write(tmp_path, "model = dict()\nwork_dir = 'named'\n", 'named.py')
    assert cli.load_config(arguments(plain)).work_dir == './work_dirs/plain'
    assert (tmp_path / 'work_dirs' / 'plain').is_dir()
    assert cli.load_config(arguments(named)).work_dir == 'named'
    cfg = cli.load_config(arguments(named, work_dir='given', launcher='pytorch'))
    assert cfg.work_dir == 'given'
    assert cfg.launcher == 'pytorch'
    cfg = cli.load_config(arguments(plain, cfg_options={'work_dir': 'option'}))
    assert cfg.work_dir == 'option'


def test_the_local_rank_comes_from_the_launcher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, 'model = dict()\n')
    monkeypatch.setenv('LOCAL_RANK', '3')
    cli.load_config(arguments(path, local_rank=1))
    assert os.environ['LOCAL_RANK'] == '3'  # torchrun's
    monkeypatch.delenv('LOCAL_RANK')
    cli.load_config(arguments(path, local_rank=1))
    assert os.environ['LOCAL_RANK'] == '1'  # torch.distributed.launch's
