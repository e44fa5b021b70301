"""Coverage: working models pass, broken ones are found, the table adds up."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from torch import nn

from benchmarks import coverage as tool
from benchmarks.examine import examine, examine_config
from benchmarks.families import OUT_OF_SCOPE, families, representative, tiny_model
from benchmarks.synthetic import Drawing


OBJECTIVES = ('total', 'cls', 'reg')


def result(row):
    return tuple(row[name] for name in ('trains', *OBJECTIVES, 'predicts'))


@pytest.mark.parametrize(
    ('family', 'wanted'),
    [
        ('centernet', ('yes', 'yes', 'n/a', 'n/a', 'yes')),  # losses of other names
        ('fast_rcnn', ('yes', 'yes', 'yes', 'yes', 'yes')),  # proposals as data
        ('maskformer', ('yes', 'yes', 'yes', 'n/a', 'yes')),  # panoptic
        ('yolox', ('yes', 'yes', 'yes', 'yes', 'yes')),  # resizes batches in training
    ],
)
def test_families_of_every_kind_work(family, wanted):
    row = examine_config(representative(family), OBJECTIVES)
    assert row['reasons'] == []
    assert result(row) == wanted


def test_every_family_has_a_config_or_a_reason():
    names = families()
    assert len(names) > 90
    assert set(names) >= set(OUT_OF_SCOPE)
    assert representative('projects/ViTDet', 'mmdet').parent == Path(
        'mmdet/projects/ViTDet/configs'
    )
    for name in set(names) - set(OUT_OF_SCOPE):
        assert representative(name).is_file(), name


@pytest.mark.parametrize('family', ['ld', 'mask2former', 'swin', 'timm_example'])
def test_a_tiny_model_downloads_nothing(family):
    config = Config.fromfile(representative(family))
    before = config.pretty_text
    assert 'http' in before or 'torchvision' in before or 'pretrained=True' in before
    text = str(tiny_model(config).to_dict())
    for word in ('http', 'torchvision://', 'Pretrained', "'pretrained': True"):
        assert word not in text
    assert config.pretty_text == before


class Broken(nn.Module):
    """A backbone that is spoiled by a function of its input and itself."""

    def __init__(self, inner, spoil):
        super().__init__()
        self.inner = inner
        self.extra = nn.Parameter(torch.zeros(1))
        self.spoil = spoil

    def forward(self, images):
        return self.inner(self.spoil(self, images) + 0 * self.extra)


def leave(backbone, images):
    return images


def detach(backbone, images):
    return images.detach()


def learn(backbone, images):
    with torch.no_grad():
        backbone.extra += 1
    return images


def differ(backbone, images):
    return images * 1.5 if backbone.inner.conv1.training else images


def overflow(backbone, images):
    # Finite forwards, but 0 * inf backwards.
    return images + 0 * (images - images).abs().sqrt()


def leave_out(backbone, images):
    return torch.cat([images[:1], images[1:].detach()])


def edit(backbone, images):
    backbone.samples[0].gt_instances.bboxes.tensor += 1
    return images


@pytest.mark.parametrize(
    ('spoil', 'wanted', 'reason'),
    [
        (leave, ('yes', 'yes', 'yes', 'yes', 'yes'), ''),
        (detach, ('no', 'no', 'no', 'no', 'no'), 'no gradient reaches the image'),
        (learn, ('yes', 'no', 'no', 'no', 'no'), 'the attack changes weights'),
        (differ, ('yes', 'no', 'yes', 'yes', 'yes'), 'in attack mode'),
        (overflow, ('no', 'no', 'no', 'no', 'no'), 'not finite|stays zero'),
        (leave_out, ('no', 'no', 'no', 'no', 'no'), 'zero'),
        (edit, ('no', 'no', 'no', 'no', 'no'), "changes the loader's batch"),
    ],
)
def test_a_model_is_found_to_be_broken_or_not(spoil, wanted, reason):
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(tiny.retinanet()))
    model.init_weights()
    drawings = [Drawing(96, 128, 3, seed=seed) for seed in range(2)]
    samples = [drawing.sample() for drawing in drawings]
    batch = dict(inputs=[d.image for d in drawings], data_samples=samples)
    model.backbone = Broken(model.backbone, spoil)
    object.__setattr__(model.backbone, 'samples', samples)
    row = examine(model, batch, OBJECTIVES)
    assert result(row) == wanted
    assert all(re.search(reason, text) for text in row['reasons']), row['reasons']


def good(path):
    return dict(
        trains='yes', total='yes', cls='n/a', reg='n/a', predicts='yes', reasons=[]
    )


def crash(path):
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def hang(path):
    time.sleep(60)
    raise AssertionError


def fail(path):
    raise RuntimeError('a | b\nc')


def quit_(path):
    os._exit(3)


@pytest.mark.parametrize(
    ('task', 'reason'),
    [
        (crash, 'the process died (SIGKILL)'),
        (hang, 'no result within 1 s'),
        (fail, 'build: RuntimeError: a | b c'),
        (quit_, 'the process ended with status 3'),
    ],
)
def test_a_process_that_fails_ends_as_a_row(task, reason):
    row = tool.run_alone(task, Path('x.py'), timeout=1)
    assert result(row) == ('no', 'no', 'no', 'no', 'no')
    assert row['reasons'] == [reason]
    assert 0 <= row['seconds'] < 10


def test_the_table_adds_up():
    rows = {
        'b': dict(config='b.py', seconds=1.25, **good(Path())),
        'a': dict(config='a.py', seconds=2.5, **good(Path())) | dict(cls='yes'),
        'c': dict(
            config='c.py',
            trains='yes',
            total='no',
            cls='no',
            reg='yes',
            predicts='no',
            seconds=0.0,
            reasons=['total: x | y', 'cls: x | y', 'reg: z'],
        ),
    }
    text = tool.markdown(rows, dict(d='no model'), 'python -m benchmarks.coverage')
    assert '**2 of 3 families work**: 3 train, 2 attacked on total, ' in text
    assert '1 attacked on cls, 1 attacked on reg, 0 attacked on vanish (of 0 ' in text
    assert 'measured), 2 predict. Folders out of scope: 1.' in text
    lines = [line for line in text.splitlines() if line[:4] in ('| a ', '| b ', '| c ')]
    assert lines == [
        '| a | a.py | yes | yes | yes | n/a |  |  |  | yes | 2.5 |  |',
        '| b | b.py | yes | yes | n/a | n/a |  |  |  | yes | 1.2 |  |',
        '| c | c.py | yes | no | no | yes |  |  |  | no | 0.0 | total, cls: x \\| y; '
        'reg: z |',
    ]
    assert '| d | no model |' in text
    assert '- command: `python -m benchmarks.coverage`' in text
    assert f'torch {torch.__version__.split("+")[0]}' in text


def test_results_are_kept_after_each_family_and_resumed(tmp_path, monkeypatch):
    out = tmp_path / 'new' / 'table.md'
    ran = tmp_path / 'ran.txt'

    def task(path):
        with ran.open('a') as file:
            file.write(path.parent.name + '\n')
        return good(path) | (
            dict(total='no', reasons=['r']) if 'fcos' in path.name else {}
        )

    monkeypatch.setattr(tool, 'examine_config', task)

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['coverage.py', '--out', str(out), *arguments])
        tool.main()

    call('--family', 'fcos', 'bytetrack')
    assert ran.read_text() == 'fcos\n'
    assert json.loads(out.with_suffix('.json').read_text())['fcos']['total'] == 'no'
    assert '**0 of 1 families work**' in out.read_text()
    assert '| bytetrack | tracker of videos; ' in out.read_text()

    call('--family', 'fcos', 'atss', '--resume')
    assert ran.read_text() == 'fcos\natss\n'
    assert '**1 of 2 families work**' in out.read_text()

    call('--family', 'atss')
    assert set(json.loads(out.with_suffix('.json').read_text())) == {'atss'}
