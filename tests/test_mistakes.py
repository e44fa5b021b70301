"""Mistakes in command lines, configs and data end with one sentence each.

Before anything is computed, and in the words of this table for all tools.
"""

import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import tiny
import torch
from mmdet.models.detectors.base import BaseDetector
from mmengine.config import Config
from mmrobust.batch import check_batch
from mmrobust.frame import count_boxes_outside
from mmrobust.errors import ConfigError
from mmrobust.utils.configs import check_sections
from mmrobust.weights import check_resumable, read_checkpoint

TOOLS = Path(__file__).resolve().parents[1] / 'tools'
FREE = dict(type='mmrobust.FreeAdversary', eps=4, replays=2)
ATTACKS = dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=1))


@pytest.fixture
def untouched(monkeypatch):
    def forward(*args, **kwargs):
        raise AssertionError('something was computed')

    monkeypatch.setattr(BaseDetector, 'forward', forward)


@pytest.fixture
def call(project, tmp_path, untouched, monkeypatch, capsys):
    """Runs a tool in this process; returns the one sentence that it ends with."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.chdir(tmp_path)

    def run(tool, *arguments):
        if '--work-dir' not in arguments:
            arguments = (*arguments, '--work-dir', 'work')
        argv = [tool, *(a.replace('PROJECT', str(project)) for a in arguments)]
        monkeypatch.setattr(sys, 'argv', argv)
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        err = capsys.readouterr().err
        assert caught.value.code == 2
        assert re.fullmatch(r'error: .*[.?]\n', err)
        return err

    return run


# Arguments behind the config and the checkpoint, and a part of the sentence.
IN_TESTS = """
--attack pdg -> attack 'pdg' is unknown (did you mean 'pgd'?): choose from noise, fgsm
--atack pgd -> unrecognized arguments: --atack pgd (did you mean '--attack'?); --help
--wait-time 1 -> --wait-time needs --show
PGD --norm l3 -> norm='l3' is unknown: choose one of linf, l2, l1
PGD --eps -4 -> eps='-4' is negative or not finite
PGD --eps nan -> eps='nan' is negative or not finite
PGD --eps inf -> eps='inf' is negative or not finite
PGD --eps four -> eps='four' is not a size
PGD --eps 4/0 -> eps='4/0' is not a size
PGD --eps 0.016 -> write eps=4.08 if that was meant
PGD --step-size -1 -> step_size='-1' is negative
PGD --step-size 0 -> would hardly move
PGD --step-size 0.004 -> would hardly move
PGD --num-steps 0 -> num_steps=0 must be a whole number
PGD --restarts 0 -> restarts=0 must be a whole number
PGD --norm l2 -> the l2 norm needs a radius: give eps
PGD --tta -> --tta and attacks exclude each other
--attack pgd cls pgd -> names one attack twice
--eps 4 -> --eps needs --attack
--step-size 1 -> --step-size needs --attack
--num-steps 5 -> --num-steps needs --attack
--num-images 2 -> --num-images needs --attack
--save-adv x -> --save-adv needs --attack
PGD --version fast -> --version is no setting of pgd
--version fast -> --version needs --attack
--attack ensemble --version slow -> version 'slow' of the ens
--attack ensemble --num-steps 5 -> --num-steps is no setting of
--attack ensemble --step-size 1 -> --step-size is no setting of
--attack universal -> universal needs a perturbation: give --perturbation FILE
--attack universal --perturbation gone.png -> 'gone.png' does not exist
--attack universal --perturbation FILE -> cannot be read as a PNG file
--attack universal-patch -> universal-patch needs a patch: give --patch FILE
--attack universal-patch --patch FILE -> cannot be read as a PNG file
--attack universal --norm l2 -> --norm is no setting of universal
PGD --perturbation x.png -> --perturbation is no setting of pgd
PGD --eps 2 4 2 -> --eps 2 4 2 names one value twice
PGD --eps 4 4/255 -> --eps 4 4/255 names one value twice
PGD --num-steps 5 5 -> --num-steps 5 5 names one value twice
PGD --norm linf l2 -> only autoattack takes several
PGD --check-images -1 -> check_images=-1 must be a whole number of
--space original -> --space needs --attack
--quantize -> --quantize needs --attack
--check-images 2 -> --check-images needs --attack
--channels-last -> --channels-last needs --attack
--attack autoattack --compile -> --compile is no setting of auto
PGD SET test_cfg.speed.autocast=float16 -> speed.autocast='float16' is unknown
--attack autoattack --quantize -> --quantize is no setting of auto
--attack autoattack --space input -> --space is no setting of
--attack pgd autoattack -> cannot be combined with other attacks
PGD --quantize SET LOADER.pipeline.1.backend=pillow -> 'bilinear' of 'pillow'
--quantize SET test_cfg.type=mmrobust.AutoAttackTestLoop -> --quantize is no setting
PGD --num-images 0 -> num_images=0 must be a whole number
PGD --num-images 7 -> num_images=7 is more than the 3 images
--out predictions.json -> must be a .pkl file
--work-dir FILE/below -> cannot be written
PGD --report FILE/x.json -> folder of --report
PGD --save-adv FILE/x -> folder of --save-adv
--out FILE/x.pkl -> folder of --out
SET LOADER.ann_file=gone.json -> gone.json does not exist: check the path, or data_root
SET LOADER.ann_file=PROJECT/text.pth -> text.pth is no valid JSON
SET data_root=/nowhere -> /nowhere/annotations.json does not
SET model.type=FCOSS -> FCOSS is not in the
SET model.bbox_head.loss_cls.type=FocalLos -> FocalLos is not in the
SET test_cfg.type=mmrobust.AttackLoop -> mmrobust.AttackLoop is not in the
PGD SET LOADER.metainfo.classes=('x',) -> has 3 images and no box at all
ATTACKS=3 -> attacks=3 must be a dict
ATTACKS.pgd=[] -> pgd=[] in attacks must be a dict
ATTACKS.a/b.type=mmrobust.RandomNoise -> 'a/b' in attacks is no name
PGD --report x.md -> report='x.md' must be a .json file
SET model=None -> model=None of the config must be a dict
SET test_dataloader=[] -> test_dataloader=[] of the config must be a dict
SET val_evaluator=x -> val_evaluator='x' of the config must be a dict or a list
SET custom_hooks={} -> custom_hooks='{}' of the config must be a list
SET resume=1 -> resume=1 of the config must be True or False
SET load_from=1 -> load_from=1 of the config must be a text
SET LOADER.pipeline.9.x=1 -> cannot set 'test_dataloader.dataset.pipeline.9.x'
SET x -> --cfg-options 'x' cannot be read: give KEY=VALUE
SET a=1 b -> --cfg-options 'a=1 b' cannot be read: give KEY=VALUE
SET a=[1,(2] -> --cfg-options 'a=[1,(2]' cannot be read: give KEY=VALUE
--attack fogg -> attack 'fogg' is unknown (did you mean 'fog'?): choose from noise,
--attack pgd --severity 2 -> --severity needs corruptions, as in --attack corr
--attack fog --severity 2 2 -> --severity 2 2 names one value twice
--corruption fog -> --corruption needs attacks that start from
--attack fog pgd --corruption snow -> --corruption needs attacks that start from
PGD --corruption snows -> corruption 'snows' is unknown (did you mean 'snow'?)
--attack fog --severity 6 -> severity=6 is unknown: choose from 1 (weak) to 5
--attack fog --eps 4 -> --eps is no setting of fog
--attack autoattack --corruption fog -> autoattack cannot be combined with corruptions
--shift a=b,c -> --shift needs --attack
PGD --shift night -> shift 'night' cannot be read: give NAME=ANN_FILE,PREFIX
PGD --shift pgd=x.json,x -> shift 'pgd' has the name of another pass
PGD --shift a=gone.json,x -> gone.json does not exist: check the path
--seed x -> --seed: invalid int value: 'x'; --help lists all options
--launcher pytorch -> needs RANK in the environment: start the tool by torchrun
"""
IN_TRAINING = """
SET optim_wrapper.accumulative_counts=2 -> would accumulate one batch with itself
SET optim_wrapper.paramwise_cfg.backbone_key=trunk -> matched no parameter
SET optim_wrapper.paramwise_cfg.backbone_lr_mult=-1 -> backbone_lr_mult=-1
SET optim_wrapper.type=AmpOptimWrapper -> needs a GPU, and torch sees none: use optim_
--autocast SET train_cfg._delete_=True -> --autocast is for adversarial training
--auto-scale-lr -> --auto-scale-lr needs auto_scale_lr=dict(
--resume gone.pth -> checkpoint 'gone.pth' does not exist
--resume PROJECT/truncated.pth -> probably damaged or incomplete
SET load_from=gone.pth -> 'gone.pth' does not exist
SET train_cfg.adversary.eps=-4 -> eps=-4 is negative
SET train_cfg.adversary.eps=0.016 -> write eps=4.08
SET train_cfg.adversary.replays=0 -> replays=0 must be
SET train_cfg.adversary.carry=x -> carry='x' is unknown
SET train_cfg.adversary.objective=cwa -> 'cwa' is an attack
SET train_cfg.adversary.type=mmrobust.FreeAT -> mmrobust.FreeAT is not in the mmrobust::
SET train_cfg.type=mmrobust.EpochLoop -> mmrobust.EpochLoop is not in the
SET data_root=/nowhere -> /nowhere/annotations.json does not
SET LOADER.ann_file=PROJECT/text.pth -> text.pth is no valid JSON
SET LOADER.metainfo.classes=('x',) -> the training has 3 images and no box at all
SET LOADER.filter_cfg.min_size=999 -> dataset is empty
SET train_cfg.max_epochs=-2 -> max_epochs=-2 must be a whole number
SET train_cfg.val_interval=x -> val_interval='x' must be a whole
--work-dir FILE/below -> cannot be written
--eps 4 -> --eps needs --robust METHOD
--backbone resnet50 -> --backbone needs --robust METHOD
--dump x.py -> --dump needs --robust METHOD
--robust free --dump x.py --amp -> --amp has no effect on the config that --dump writes
--robust pgd --replays 3 -> replays=3 has no meaning for the method 'pgd'
--robust fre -> method 'fre' is unknown
--robust free --eps -1 -> eps='-1' is negative
--robust free --dump x.yaml -> must be a .py file
--robust free -> the config is adversarial already
"""
IN_FITS = """
--eps 0 -> --eps 0 must be from 1 to 127
--eps 128 -> --eps 128 must be from 1 to 127
--patch-size 8 -> --patch-size needs --attack universal-patch
--attack universal-patch --eps 4 -> --eps is no setting of universal-patch
--attack universal-patch --patch-place top -> place='top' of a patch is unknown
--attack universal-patch --smooth -1 -> --smooth=-1.0 must be a number
--attack noise -> --attack: invalid choice: 'noise'
--passes 0 -> --passes=0 must be a whole number
--objective lost -> lost
--with PROJECT/standard.py -> --with: expected 2 arguments
--with PROJECT/standard.py gone.pth -> gone.pth
--num-images 7 -> num_images=7 is more than the 3 images
SET LOADER.ann_file=gone.json -> gone.json does not exist: check the path, or data_root
"""
SHORT = {
    'PGD': '--attack pgd',
    'ATTACKS': 'SET test_cfg.type=mmrobust.AttackTestLoop test_cfg.attacks',
    'SET': '--cfg-options',
    'FILE': 'PROJECT/file',
    'LOADER': 'STAGE_dataloader.dataset',
}


def mistakes():
    """Tool, arguments and sentence of each line."""
    rows = []
    tables = {'test': IN_TESTS, 'train': IN_TRAINING, 'fit_universal': IN_FITS}
    for stage, table in tables.items():
        for line in table.strip().splitlines():
            arguments, sentence = line.split(' -> ')
            for word, meaning in SHORT.items():
                arguments = arguments.replace(word, meaning)
            loader = 'test' if stage == 'test' else 'train'
            rows.append((stage, arguments.replace('STAGE', loader), sentence))
    return rows


@pytest.mark.parametrize(('stage', 'arguments', 'sentence'), mistakes())
def test_a_mistake_is_one_sentence(call, stage, arguments, sentence):
    """With exit status 2."""
    given = {
        'test': ['PROJECT/standard.py', 'PROJECT/good.pth'],
        'train': ['PROJECT/config.py'],
        'fit_universal': ['PROJECT/standard.py', 'PROJECT/good.pth'],
    }
    assert sentence in call(f'{stage}.py', *given[stage], *arguments.split())


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('gone', 'does not exist: check the path'),
        ('truncated', 'cannot be read and is probably damaged or incomplete'),
        ('text', 'is no readable torch file|is probably damaged'),
        ('wider', r'does not fit FCOS: 2 of .* \(bbox_head.conv_cls.weight'),
        ('other', 'does not fit FCOS: .* is it the checkpoint of this config'),
        ('code', 'holds pickled code .* not run for files of unknown origin'),
        ('list', 'holds a list'),
    ],
)
def test_a_wrong_checkpoint(call, name, sentence):
    """mmengine loads what fits: a half random detector looks like a good attack."""
    text = call('test.py', 'PROJECT/standard.py', f'PROJECT/{name}.pth')
    assert f'{name}.pth' in text
    assert re.search(sentence, text)


@pytest.mark.parametrize('stage', ['train', 'test'])
@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (None, 'does not exist: check the path'),
        ('model = dict(type=\n', 'cannot be read'),
        ('x = 1\n', 'has no model'),
        ("model = dict(type='FCOS')\n", 'has no STAGE_dataloader to STAGE'),
    ],
)
def test_a_wrong_config(call, tmp_path, stage, text, sentence):
    if text is not None:
        (tmp_path / 'mine.py').write_text(text)
    checkpoint = ['PROJECT/good.pth'] * (stage == 'test')
    message = call(f'{stage}.py', 'mine.py', *checkpoint)
    assert 'mine.py' in message
    assert sentence.replace('STAGE', stage) in message


def test_sections_may_be_absent_or_none():
    check_sections(Config({'model': {}, 'val_cfg': None, 'test_evaluator': [{}]}))


@pytest.mark.parametrize(
    ('batch', 'sentence'),
    [
        ({'img': 1}, 'yields img and not inputs and data_samples'),
        ([], 'yields a list and not'),
    ],
)
def test_a_batch_of_another_pipeline(batch, sentence):
    check_batch({'inputs': [], 'data_samples': []})
    with pytest.raises(ConfigError, match=sentence):
        check_batch(batch)


def test_weights_that_are_no_numbers(tmp_path):
    """A detector of NaN finds nothing, as if the attack were perfect."""
    path = str(tmp_path / 'x.pth')
    state = {'a': torch.zeros(2), 'b': torch.tensor([1.0, math.nan])}
    torch.save({'state_dict': state}, path)
    with pytest.raises(ConfigError, match=r"1 of 2 tensors, 'b' first"):
        read_checkpoint(path)
    state['b'] = torch.tensor([1.0, math.inf])  # masks of attention have it
    torch.save({'state_dict': state}, path)
    read_checkpoint(path)


def test_weights_alone_cannot_be_resumed():
    check_resumable('x.pth', {'meta': {'epoch': 1, 'iter': 2}})
    for checkpoint in ({}, {'meta': {}}, {'meta': None}, {'meta': {'epoch': 1}}):
        with pytest.raises(ConfigError, match=r'with --cfg-options load_from=x\.pth'):
            check_resumable('x.pth', checkpoint)


def changed(coco, folder, change):
    content = json.loads((coco / 'annotations.json').read_text())
    change(content)
    path = folder / 'changed.json'
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize('box', [[5, 5, math.inf, 9], [5, 5, 9, 1e300]])
@pytest.mark.parametrize('training', [True, False])
def test_a_box_that_is_none(coco, tmp_path, build_runner, untouched, box, training):
    """mmdet takes it, and its losses are NaN."""
    path = changed(
        coco, tmp_path, lambda content: content['annotations'][0].update(bbox=box)
    )
    loader = tiny.loader(coco, test=not training)
    loader['dataset']['ann_file'] = path
    loop = dict(type='mmrobust.AdvEpochBasedTrainLoop', max_epochs=1, adversary=FREE)
    test = dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    if training:
        run = build_runner(train_cfg=loop, train_dataloader=loader).train
    else:
        run = build_runner(test_cfg=test, test_dataloader=loader).test
    with pytest.raises(ConfigError, match=r'000.png has the box .* which is none'):
        run()


def test_an_object_without_the_mask_that_is_loaded(
    coco, tmp_path, build_runner, untouched
):
    """mmdet's pipeline would end at its image with a KeyError."""
    path = changed(
        coco, tmp_path, lambda content: content['annotations'][2].pop('segmentation')
    )
    loader = tiny.loader(coco, test=True)
    loader['dataset'].update(ann_file=path, pipeline=tiny.pipeline(True, masks=True))
    test = dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    run = build_runner(test_cfg=test, test_dataloader=loader).test
    with pytest.raises(ConfigError, match='has an object without a mask'):
        run()


def test_a_metric_without_a_class(coco, tmp_path, build_runner, untouched):
    """mmdet's fails once every image has been predicted, or scores other classes."""
    path = changed(coco, tmp_path, lambda content: content['categories'].pop(1))
    metric = dict(type='CocoMetric', ann_file=path, metric='bbox')
    test = dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    with pytest.raises(ConfigError, match="CocoMetric has no category 'square'"):
        build_runner(test_cfg=test, test_evaluator=metric).test()


def test_images_without_their_shape(build_runner, untouched):
    runner = build_runner(
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    )
    sample = runner.test_dataloader.dataset[0]['data_samples']
    assert count_boxes_outside([sample]) == 0
    del sample.img_shape
    with pytest.raises(ConfigError, match='meta_keys of PackDetInputs'):
        count_boxes_outside([sample])


def test_a_preprocessor_that_prepares_no_images(build_runner, untouched):
    runner = build_runner(
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=ATTACKS)
    )
    del runner.model.data_preprocessor
    runner.model.data_preprocessor = None
    with pytest.raises(ConfigError, match='give DetDataPreprocessor'):
        runner.test()
