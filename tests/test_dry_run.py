"""--dry-run: closed forms for what it counts, the real peak for what it carries on."""

import functools
import json
import math
import operator
import runpy
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from mmrobust.commands import rehearsal
from mmrobust.commands.dry_run import _images, _sharded, _simplify, dry_run
from mmrobust.commands.made_up import _classes, make_up
from mmrobust.datasets.tar_shards import TarShardsDataset
from mmrobust.errors import ConfigError
from mmrobust.utils.measuring import Passes, PeakMemory, size_of
from torch import nn

TRAIN = Path(__file__).resolve().parents[1] / 'tools' / 'train.py'
SIDE, WIDTH, CLASSES = 32, 8, 10


@MODELS.register_module(force=True)
class TwoConvolutions(BaseModule):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)

    def forward(self, image):
        return (self.grouped(self.conv(image)),)


def config(batch=8, adversary=None, **settings):
    """A classifier whose operations and bytes can be counted by hand.

    It begins from a checkpoint that is not there.
    """
    if adversary is None:
        adversary = dict(type='mmrobust.APGDAdversary', eps=4, num_steps=2)
    return Config(
        dict(
            default_scope='mmpretrain',
            custom_imports=dict(imports=['mmrobust']),
            model=dict(
                type='ImageClassifier',
                data_preprocessor=dict(
                    type='ClsDataPreprocessor', num_classes=CLASSES, to_rgb=True
                ),
                backbone=dict(
                    type='TwoConvolutions',
                    init_cfg=[dict(type='Pretrained', checkpoint='/nowhere.pth')],
                ),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=WIDTH),
            ),
            train_dataloader=dict(
                batch_size=batch,
                num_workers=2,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
                dataset=dict(
                    type='ImageNet',
                    data_root='nowhere',
                    split='train',
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='RandomCrop', crop_size=SIDE),
                        dict(type='PackInputs'),
                    ],
                ),
            ),
            train_cfg=dict(
                type='mmrobust.AdvEpochBasedTrainLoop',
                max_epochs=3,
                adversary=adversary,
            ),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
            custom_hooks=[dict(type='EMAHook', priority='ABOVE_NORMAL')],
            **settings,
        )
    )


@pytest.fixture(autouse=True)
def _without_yapf(monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', property(str))


def measured(monkeypatch, *args, **kwargs):
    """What was found, and the text."""
    caught = []
    stock = rehearsal.RehearsalHook.__init__

    def init(self, *args, **kwargs):
        stock(self, *args, **kwargs)
        caught.append(self.found)

    with monkeypatch.context() as patch:
        patch.setattr(rehearsal.RehearsalHook, '__init__', init)
        text = dry_run(config(*args, **kwargs), 8)
    return caught[0], text


def test_what_an_update_takes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found, text = measured(monkeypatch)
    assert (found.batch, found.measured, found.timed) == (8, 4, 8)
    assert found.shapes == {(SIDE, SIDE)}
    # Three values and two gradients for the attack, one of each to learn.
    assert (found.forward, found.backward) == (4, 3)
    convolution = 2 * 8 * SIDE**2 * WIDTH * 3 * 9
    grouped = 2 * 8 * SIDE**2 * WIDTH * 9
    linear = 2 * 8 * WIDTH * CLASSES
    # Four values; gradients of the input in the attack, of the weights when learning,
    # where only the image needs none.
    assert found.operations == 7 * convolution + 8 * (grouped + linear)
    weights = 4 * (WIDTH * 3 * 9 + WIDTH * 9 + WIDTH * CLASSES + CLASSES)
    assert found.parts['gradients'] == weights
    assert 0 <= found.parts['weights'] - weights <= 32  # mean and std
    assert found.parts['optimizer'] == 2 * weights + 4 * 4  # and steps
    assert 0 <= found.parts['moving average'] - weights <= 64
    # ImageNet's pictures on 8 processes of 8.
    assert f'{3 * -(-1281167 // 64)} (3 epochs of 20019, for 1281167 pictures)' in text
    assert '4 forward and 3 backward' in text
    assert not list(tmp_path.iterdir())


def test_memory_of_the_batch_follows_from_that_of_parts(monkeypatch):
    # oneDNN's scratch memory is another one on each kind of processor.
    with torch.backends.mkldnn.flags(enabled=False):
        small, _ = measured(monkeypatch, batch=12)
        monkeypatch.setattr(rehearsal, '_SIZES', (12,))
        whole, _ = measured(monkeypatch, batch=12)
    assert (small.measured, whole.measured) == (4, 12)
    assert small.peak == pytest.approx(whole.peak, rel=0.02)
    # The image, its perturbed copies and gradient, and the maps of the convolutions.
    assert whole.peak > 12 * SIDE**2 * 4 * (3 + 2 * WIDTH)


def test_replays(monkeypatch):
    free = dict(type='mmrobust.FreeAdversary', eps=4, replays=2)
    found, text = measured(monkeypatch, batch=2, adversary=free)
    assert (found.forward, found.backward) == (1, 1)
    assert f'{3 * 2 * -(-1281167 // 16)} (3 epochs of' in text


def test_a_detector_without_its_data(project, tmp_path, monkeypatch, capsys):
    """By the command, as a user has it: nothing is kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    argv = ['train.py', str(project / 'config.py'), '--dry-run', '4']
    options = ['train_dataloader.dataset.ann_file=gone.json']
    monkeypatch.setattr(sys, 'argv', [*argv, '--cfg-options', *options])
    runpy.run_path(str(TRAIN), run_name='__main__')
    text = capsys.readouterr().out
    assert '1 forward and 1 backward' in text
    assert text.startswith('Dry run on')
    assert 'epochs of unknown length: ' in text
    assert 'gone.json' in text
    assert 'all updates' not in text
    assert not list(tmp_path.iterdir())


COCO = dict(type='CocoDataset', ann_file='annotations/instances_train2017.json')
VOC = [
    dict(type='VOCDataset', ann_file=f'VOC{year}/ImageSets/Main/trainval.txt')
    for year in (2007, 2012)
]


def test_well_known_data():
    """Their classes and sizes, in wrappers too."""
    assert len(_classes(COCO)) == 80
    assert _classes(VOC[0])[0] == 'aeroplane'
    assert _images(COCO) == 117266
    both = dict(type='ConcatDataset', datasets=VOC)
    assert _images(dict(type='RepeatDataset', times=3, dataset=both)) == (3 * 16551)
    with pytest.raises(FileNotFoundError, match=r'mine\.json'):
        _images(dict(COCO, ann_file='mine.json'))


def test_data_that_are_counted_otherwise(coco, tmp_path, monkeypatch):
    """A wrapper that repeats pictures; those whose count would write something."""
    monkeypatch.setenv('MMROBUST_CACHE', str(tmp_path))
    file = coco / 'annotations.json'
    classes = [one['name'] for one in json.loads(file.read_text())['categories']]
    inner = dict(
        type='mmdet.CocoDataset',
        ann_file=str(file),
        data_prefix=dict(img=''),
        metainfo=dict(classes=classes),
    )
    pictures = defaultdict(set)
    for one in json.loads(file.read_text())['annotations']:
        pictures[one['image_id']].add(one['category_id'])
    # Every category is rarer than that.
    often = Counter(category for found in pictures.values() for category in found)
    repeated = sum(
        max(math.ceil(math.sqrt(16 / (often[category] / 6))) for category in found)
        for found in pictures.values()
    )
    # As large as it is, whatever its name says.
    known = tmp_path / 'instances_train2017.json'
    known.write_text(file.read_text())
    assert _images(dict(inner, ann_file=str(known))) == 6
    known.unlink()
    balanced = dict(type='ClassBalancedDataset', oversample_thr=16, dataset=inner)
    assert _images(balanced) == repeated + 6 - len(pictures)
    shards = dict(type='mmrobust.TarShardsDataset', split='a', data_root=str(tmp_path))
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        tar.addfile(tarfile.TarInfo('c/picture.jpg'))
    for dataset in (shards, dict(type='mmrobust.DigitsDataset'), balanced):
        if dataset is balanced:
            balanced['dataset'] = shards
        with pytest.raises(ConfigError, match='is counted when a training reads it'):
            _images(dataset)
    assert [path.name for path in tmp_path.iterdir()] == ['a.tar']
    TarShardsDataset(split='a', data_root=str(tmp_path))
    assert _images(shards) == 1


def test_digits_are_made_in_the_folder(tmp_path):
    pipeline = [dict(type='PackDetInputs')]
    digits = dict(type='mmrobust.DigitsDataset', pipeline=pipeline, data_root='mine')
    loader = ConfigDict(dataset=digits)
    make_up(loader, tmp_path, 1)
    assert loader.dataset.data_root == str(tmp_path / 'digits')


def test_what_is_left_out():
    cfg = config(
        runner_type='FlexibleRunner', strategy=dict(type='mmrobust.FSDPStrategy')
    )
    assert _sharded(cfg) == 'FSDPStrategy'
    kaiming = dict(type='Kaiming', layer='Conv2d')
    stored = dict(type='Pretrained', checkpoint='/nowhere.pth')
    cfg.model.update(teacher_ckpt='/nowhere.pth', init_cfg=[kaiming, stored])
    notes = _simplify(cfg, Path('folder'), 'FSDPStrategy')
    assert 'FSDPStrategy is left out' in notes[0]
    assert cfg.model.teacher_ckpt is None
    assert cfg.model.backbone.init_cfg is None
    assert cfg.model.init_cfg == [kaiming]
    assert not _sharded(config(strategy=dict(type='DDPStrategy')))


def test_peak_memory_and_sizes():
    with PeakMemory(torch.device('cpu')) as memory:
        first = torch.zeros(1000)
        second = torch.zeros(500)
        del first
        third = torch.zeros(250)
    assert memory.bytes == 4 * 1500
    assert size_of([second, second[:10], third, 7]) == 4 * 750


def test_passes_use_some_of_the_outputs():
    linear = nn.Linear(2, 2)
    network = nn.Module()
    network.forward = lambda x: [linear(x), {'more': linear(x) * 2}]
    passes = Passes(network)
    image = torch.ones(1, 2, requires_grad=True)
    network(image)[1]['more'].sum().backward()
    network(image)[0].sum().backward()
    with torch.no_grad():
        network(image)
    passes.close()
    network(image)
    assert (passes.forward, passes.backward) == (3, 2)


def test_what_cannot_be_made_up_is_refused():
    cfg = config()
    cfg.train_dataloader.dataset.pipeline.pop()
    with pytest.raises(ConfigError, match='packs something else'):
        dry_run(cfg, 1)
    with pytest.raises(ConfigError, match='--dry-run 0'):
        dry_run(cfg, 0)


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('train_dataloader.dataset', None, 'must be a dict with a type'),
        ('train_dataloader.dataset', 'coco', 'must be a dict with a type'),
        ('train_dataloader.dataset.type', None, 'must be a dict with a type'),
        ('train_dataloader.dataset.type', 'NoSuch', "no dataset 'NoSuch'"),
        ('train_dataloader.batch_size', 0, 'batch_size=0'),
        ('train_cfg.max_iters', 2, 'max_iters to 4 or more'),
        (
            'model.language_model',
            dict(type='BertModel', name='no-such-bert'),
            "'no-such-bert' is not on this machine",
        ),
    ],
)
def test_mistakes_end_with_a_sentence(path, value, message):
    cfg = config()
    *parents, key = path.split('.')
    node = functools.reduce(operator.getitem, parents, cfg)
    if value is None:
        del node[key]
    else:
        node[key] = value
    with pytest.raises(ConfigError, match=message):
        dry_run(cfg, 1)
