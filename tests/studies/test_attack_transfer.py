"""The transfer matrix: the whole tool on two small detectors, and its parts."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import mmrobust  # noqa: F401
from mmdet.registry import METRICS, MODELS
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import BaseDataElement

import tiny
from mmrobust.attacks import attack_preset
from mmrobust.datasets.digits import make_digits
from mmrobust.errors import ConfigError
from mmrobust.studies.attack_matrix import (
    Detector,
    Entry,
    Matrix,
    Plan,
    choose,
    figure,
    parse_detectors,
)
from mmrobust.studies.attack_transfer import Source, _enter, run_matrix

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'transfer_matrix.py'
SIDES = {'small': 64, 'large': 96}
KEY = 'seen/score'


@METRICS.register_module(force=True)
class BestScore(BaseMetric):
    """A figure of untrained detectors, too: the mean of the images' best scores."""

    default_prefix = 'seen'

    def process(self, data_batch, data_samples):
        self.results += [
            s['pred_instances']['scores'].max().item() for s in data_samples
        ]

    def compute_metrics(self, results):
        return {'score': float(np.mean(results)), 'images': len(results)}


def config(root, side, **test_set):
    model = tiny.fcos()
    model['bbox_head']['num_classes'] = 10
    model['data_preprocessor'] = dict(model['data_preprocessor'], pad_size_divisor=1)
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='mmrobust.DigitsDataset',
            data_root=str(root),
            ann_file='annotations/instances_val.json',
            data_prefix=dict(img='val/'),
            test_mode=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(side, side), keep_ratio=True),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs', meta_keys=keys),
            ],
            **test_set,
        ),
    )
    return dict(
        model=model,
        test_dataloader=loader,
        test_evaluator=dict(type='BestScore'),
        test_cfg=dict(type='TestLoop'),
        default_scope='mmdet',
        custom_imports=dict(imports=['mmrobust'], allow_failed_imports=False),
        log_level='ERROR',
    )


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """Configs and checkpoints of two detectors, which take images of other sizes."""
    folder = tmp_path_factory.mktemp('project')
    make_digits(folder / 'digits', num_train=1, num_val=5)
    with DefaultScope.overwrite_default_scope('mmdet'):
        init_default_scope('mmdet')
        for seed, (name, side) in enumerate(SIDES.items()):
            cfg = config(folder / 'digits', side)
            Config(cfg).dump(folder / f'{name}.py')
            torch.manual_seed(seed)
            model = MODELS.build(ConfigDict(cfg['model']))
            model.init_weights()
            weights = dict(state_dict=model.state_dict(), meta={})
            torch.save(weights, folder / f'{name}.pth')
    return folder


def detector(project, name, **changes):
    cfg = Config.fromfile(project / f'{name}.py')
    cfg.merge_from_dict(changes)
    weights = str(project / f'{name}.pth')
    return Detector(name, str(project / f'{name}.py'), weights, cfg)


def plan(project, work_dir, **kwargs):
    detectors = [detector(project, name) for name in SIDES]
    preset = attack_preset('mim', eps=kwargs.pop('eps', 8), num_steps=2)
    settings = dict(
        sources=detectors,
        targets=detectors,
        attack='mim',
        preset=preset,
        work_dir=work_dir,
        num_images=3,
        metric=KEY,
        command=['python', 'tools/transfer_matrix.py'],
    )
    work_dir.mkdir(exist_ok=True)
    return Plan(**{**settings, **kwargs})


@pytest.fixture(scope='module')
def done(project, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('done') / 'work'
    with DefaultScope.overwrite_default_scope('mmdet'):
        return run_matrix(plan(project, work_dir))


@pytest.fixture
def work_dir(done, tmp_path):
    """A copy of the finished work dir, to be changed."""
    return Path(shutil.copytree(done.plan.work_dir, tmp_path / 'work'))


def by_hand(project, name, pictures):
    """The figure of one detector on pictures that are resized to its side."""
    cfg = Config.fromfile(project / f'{name}.py')
    model = MODELS.build(cfg.model).eval()
    weights = torch.load(project / f'{name}.pth', weights_only=False)
    model.load_state_dict(weights['state_dict'])
    side, best = SIDES[name], []
    for picture in pictures:
        if picture.shape[:2] != (side, side):
            picture = cv2.resize(picture, (side, side))
        batch = dict(
            inputs=[torch.from_numpy(picture).permute(2, 0, 1)],
            data_samples=[
                _sample(dict(img_shape=(side, side), scale_factor=(1, 1), ori_shape=1))
            ],
        )
        with torch.no_grad():
            (found,) = model.test_step(batch)
        best.append(found.pred_instances.scores.max().item())
    return float(np.mean(best))


def _sample(metainfo):
    from mmdet.structures import DetDataSample

    return DetDataSample(metainfo=metainfo)


def test_every_figure_is_what_a_plain_loop_gives(project, done):
    names = sorted((done.plan.work_dir / 'sources/small/images/mim').glob('*.npz'))
    assert len(names) == 3
    originals = []
    for name in names:
        path = str(np.load(name)['img_path'])
        originals.append(cv2.imread(path))
        assert originals[-1].shape == (128, 128, 3)
    for target in SIDES:
        assert done.clean[target] == pytest.approx(by_hand(project, target, originals))
        for source, side in SIDES.items():
            entry = done.entry(source, target)
            assert entry is not None
            seen = [
                cv2.resize(original, (side, side)).astype(np.float32)
                for original in originals
            ]
            assert entry.control == pytest.approx(by_hand(project, target, seen))
            folder = done.plan.work_dir / f'sources/{source}/images/mim'
            attacked = [
                np.ascontiguousarray(
                    np.load(folder / n.name)['image'].transpose(1, 2, 0)
                )
                for n in names
            ]
            assert max(np.abs(a - c).max() for a, c in zip(attacked, seen)) == 8  # noqa: B905
            assert entry.value == pytest.approx(by_hand(project, target, attacked))
            assert entry.metrics['seen/images'] == 3
            assert entry.white_box == (source == target)
    # All is different, or the comparisons above say little.
    values = [e.value for e in done.entries] + [e.control for e in done.entries]
    assert len({round(value, 6) for value in values}) == 8


def test_the_diagonal_is_what_the_attack_itself_gave(done):
    for name in SIDES:
        report = done.plan.work_dir / 'sources' / name / 'robustness.json'
        (attack,) = json.loads(report.read_text())['attacks']
        entry = done.entry(name, name)
        assert entry is not None
        assert entry.value == pytest.approx(attack['metrics'][KEY], abs=1e-6)
        assert done.own[name]['cost']['backwards'] == 6  # 3 images, 2 steps


def test_files_hold_the_figures(done):
    folder = done.plan.work_dir
    content = json.loads((folder / 'transfer_matrix.json').read_text())
    assert content['complete'] is True
    assert content['attack']['eps'] == 8
    assert [d['name'] for d in content['detectors']] == ['small', 'large']
    assert all(len(d['sha256']) == 64 for d in content['detectors'])
    assert len(content['entries']) == 4
    for entry in content['entries']:
        assert entry['fall'] == pytest.approx(entry['control'] - entry['value'])
    text = (folder / 'transfer_matrix.md').read_text()
    assert done.table() in text
    picture = cv2.imread(str(folder / 'transfer_matrix.png'))
    assert picture is not None
    assert picture.std() > 10


def _no_attack(self):
    raise AssertionError('attacked again')


def test_images_that_are_there_are_not_made_again(project, work_dir, done, monkeypatch):
    monkeypatch.setattr(Source, 'attack', _no_attack)
    # Other targets are no other settings of the images.
    again = run_matrix(plan(project, work_dir, targets=[detector(project, 'large')]))
    before = [e for e in done.entries if e.target == 'large']
    assert [e.source for e in again.entries] == [e.source for e in before]
    # Where tensors lie in memory may change how a network rounds.
    values = [e.value for e in before]
    assert [e.value for e in again.entries] == pytest.approx(values, rel=1e-5)
    assert again.clean == {'large': done.clean['large']}
    assert again.own == done.own


def test_images_that_are_missing_are_made_again(project, work_dir, done):
    missing = next((work_dir / 'sources/large/images/mim').glob('*.npz'))
    original = np.load(missing)['image']
    settings = plan(project, work_dir)
    content = missing.read_bytes()
    missing.unlink()
    assert Source(settings, settings.sources[1]).result is None
    missing.write_bytes(content)
    for record in (work_dir / 'sources/large').rglob('*.record'):
        record.unlink()  # as in an attack that was interrupted
    other, source = (Source(settings, each) for each in settings.sources)
    assert other.result is not None
    assert source.result is None
    missing.unlink()
    source.attack()
    assert source.result is not None
    assert np.array_equal(np.load(missing)['image'], original)


def test_other_settings_are_refused(project, work_dir):
    def refused(**kwargs):
        settings = plan(project, work_dir, **kwargs)
        with pytest.raises(ConfigError) as caught:
            Source(settings, settings.sources[0])
        return str(caught.value)

    assert 'attack.eps was 8.0 and is 4.0' in refused(eps=4)
    assert 'seed was 0 and is 1' in refused(seed=1)
    assert 'num_images was 3 and is 2' in refused(num_images=2)
    changed = detector(project, 'small', **{'model.test_cfg.nms_pre': 7})
    assert 'model.test_cfg.nms_pre was 100 and is 7' in refused(sources=[changed])
    other = detector(project, 'small')
    other.checkpoint = str(project / 'large.pth')
    assert 'checkpoint was ' in refused(sources=[other])
    (work_dir / 'sources/small/source.json').write_text('{')
    assert 'its source.json cannot be read' in refused()
    (work_dir / 'sources/small/source.json').unlink()
    assert 'holds results but no source.json' in refused()


def test_damaged_images_are_refused(project, work_dir):
    settings = plan(project, work_dir)
    source = Source(settings, settings.sources[0])
    img_id = next(iter(source.ids))
    path = work_dir / f'sources/small/images/mim/{img_id}.npz'
    with pytest.raises(ConfigError, match=r'of 128 x 128 pixels.* one of 7 x 9'):
        source.adversarial(img_id, BaseDataElement(metainfo=dict(ori_shape=(7, 9))))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match='damaged or missing'):
        source.adversarial(img_id, BaseDataElement(metainfo=dict(ori_shape=(128, 128))))


def test_padding_is_not_shown_to_others(project, tmp_path):
    small = detector(project, 'small')
    pad = dict(type='Pad', size=(80, 72), pad_val=dict(img=(1, 2, 3)))
    small.cfg.test_dataloader.dataset.pipeline.insert(2, pad)
    settings = plan(project, tmp_path, sources=[small], targets=[small])
    source = Source(settings, small)
    img_id = next(iter(source.ids))
    sample = BaseDataElement(metainfo=dict(ori_shape=(128, 128)))
    folder = tmp_path / 'sources/small/images/mim'
    folder.mkdir(parents=True)
    image = np.random.default_rng(0).random((3, 72, 80), np.float32)
    np.savez(folder / f'{img_id}.npz', image=image, ori_shape=(128, 128))
    found = source.adversarial(img_id, sample)
    assert np.array_equal(found, image[:, :64, :64].transpose(1, 2, 0))
    assert source.clean(img_id, sample).shape == (64, 64, 3)


def test_detectors_of_one_size_share_a_control(project, tmp_path):
    first, padded = detector(project, 'small'), detector(project, 'small')
    padded.name = 'padded'
    pad = dict(type='Pad', size_divisor=64)
    padded.cfg.test_dataloader.dataset.pipeline.insert(2, pad)
    other = detector(project, 'large')
    assert first.resizing() == padded.resizing() != other.resizing()
    matrix = Matrix(plan(project, tmp_path, sources=[first, padded, other]), KEY)
    matrix.clean = {'small': 0.5}
    assert '| none, at the size of small, padded |' in matrix.table()
    assert '| none, at the size of large |' in matrix.table()


def test_other_images_are_refused(project, tmp_path):
    fewer = detector(project, 'large')
    fewer.cfg.test_dataloader.dataset.indices = 4
    both = [detector(project, 'small'), fewer]
    settings = plan(project, tmp_path, num_images=None, sources=both, targets=both)
    with pytest.raises(ConfigError, match='not tested on the same images: 1 img_ids'):
        run_matrix(settings)

    renamed = tmp_path / 'renamed'
    shutil.copytree(project / 'digits', renamed)
    path = renamed / 'annotations/instances_val.json'
    content = json.loads(path.read_text())
    content['images'][0]['file_name'] = '0001.png'
    path.write_text(json.dumps(content))
    fewer.cfg.test_dataloader.dataset.update(indices=None, data_root=str(renamed))
    with pytest.raises(ConfigError, match=r"img_id \d is '0001.png' in one and '0000"):
        run_matrix(settings)


def test_pipelines_that_cannot_be_followed_are_refused(project, tmp_path):
    small, large = (detector(project, name) for name in SIDES)
    pipeline = large.cfg.test_dataloader.dataset.pipeline
    pipeline.insert(1, dict(type='RandomFlip', prob=0.5))
    with pytest.raises(ConfigError, match=r'large: the test pipeline.*RandomFlip'):
        run_matrix(plan(project, tmp_path, sources=[small], targets=[large]))


def test_classifiers_and_halves_of_configs_are_refused(project):
    with pytest.raises(ConfigError, match='is of a classifier'):
        detector(project, 'small', default_scope='mmpretrain')
    with pytest.raises(ConfigError, match='has no test_evaluator'):
        detector(project, 'small', test_evaluator=None)


def test_targets_need_a_figure_in_common(project, tmp_path):
    def of(name, kind):
        changed = detector(project, name)
        changed.cfg.test_evaluator = dict(type=kind)
        return changed

    targets = [of('small', 'CocoMetric'), of('large', 'VOCMetric')]
    with pytest.raises(ConfigError, match='no figure in common: small gives coco/bbox'):
        run_matrix(plan(project, tmp_path, targets=targets, metric=None))
    with pytest.raises(ConfigError, match='say with --metric'):
        run_matrix(plan(project, tmp_path, metric=None))


# ------------------------------------------------------------------- without networks


@pytest.fixture
def made_up(project, tmp_path):
    matrix = Matrix(plan(project, tmp_path / 'made_up'), KEY)
    matrix.clean = {'small': 0.5, 'large': 0.6}
    matrix.entries = [
        Entry('small', 'small', 0.2, 0.5),
        Entry('large', 'small', 0.1, 0.45),
        Entry('small', 'large', 0.4, 0.55),
        Entry('large', 'large', 0.3, 0.6),
    ]
    return matrix


def test_the_table_shows_the_fall_from_the_control(made_up):
    assert made_up.table().splitlines() == [
        '| images made for | small | large |',
        '| --- | ---: | ---: |',
        '| none (clean) | 0.500 | 0.600 |',
        '| none, at the size of small | 0.500 | 0.550 |',
        '| none, at the size of large | 0.450 | 0.600 |',
        '| small | **0.200 (-0.300)** | 0.400 (-0.150) |',
        '| large | 0.100 (-0.350) | **0.300 (-0.300)** |',
    ]


def test_a_transferred_attack_that_beats_the_direct_one_is_named(made_up):
    (check,) = made_up.checks()
    assert check.startswith('small loses more to the images made for large (0.350)')
    assert 'masked' in check
    made_up.entries[1] = Entry('large', 'small', 0.2, 0.45)
    assert made_up.checks() == []
    # Lower than its own only because the way through another size costs as much.
    made_up.entries[1] = Entry('large', 'small', 0.1, 0.35)
    assert made_up.checks() == []


def test_the_attacks_own_checks_and_figures_are_compared(made_up):
    made_up.entries[1] = Entry('large', 'small', 0.3, 0.45)
    made_up.own = {
        'small': {'metrics': {KEY: 0.2004}, 'checks': ['2 boxes outside']},
        'large': {'metrics': {KEY: 0.25}, 'checks': []},
    }
    assert made_up.checks() == [
        'attack on small: 2 boxes outside',
        'large: its own images gave 0.250 in the attack and give 0.300 as pictures '
        'that go through its pipeline',
    ]


def test_an_unfinished_matrix_says_so(made_up):
    del made_up.clean['large']
    assert not made_up.complete
    assert 'Not complete' in made_up.markdown()
    assert made_up.table().splitlines()[0] == '| images made for | small |'
    made_up.write()
    path = made_up.plan.work_dir / 'transfer_matrix.json'
    assert json.loads(path.read_text())['complete'] is False


def test_no_detection_counts_as_nothing(made_up, project):
    made_up.entries = []
    settings = made_up.plan
    source = Source(settings, settings.sources[0])
    found = {
        'clean': {KEY: 0.5},
        'clean, at the size of small': {KEY: 0.4},
        'made for small': {},
    }
    _enter(made_up, 'large', found, [source])
    assert made_up.entries == [Entry('small', 'large', 0.0, 0.4)]
    assert made_up.notes == ['large finds nothing on made for small: counted as 0']
    found['clean'] = {'other': 1.0}
    with pytest.raises(ConfigError, match=r"gives no 'seen/score' but other"):
        _enter(made_up, 'large', found, [source])


def test_the_picture_shows_every_entry(made_up):
    made_up.entries = [
        Entry('small', 'small', 0.1, 0.5),
        Entry('small', 'large', 0.2, 0.0),
        Entry('large', 'small', 0.4, 0.5),
    ]
    axes = figure(made_up).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ['0.100\n(-0.400)', '0.200\n(+0.200)', '0.400\n(-0.100)']
    shares = axes.images[0].get_array()
    assert shares[0][0] == pytest.approx(0.2)
    assert shares[1][0] == pytest.approx(0.8)
    mask = np.ma.getmaskarray(np.ma.masked_invalid(shares))
    assert mask.tolist() == [[False, True]] * 2


# -------------------------------------------------------------------- command line


def test_pairs_are_read():
    items = ['a=configs/a.py:a.pth', 'b=mmdet::fcos/b.py:https://host/b.pth']
    assert parse_detectors(items) == {
        'a': ('configs/a.py', 'a.pth'),
        'b': ('mmdet::fcos/b.py', 'https://host/b.pth'),
    }
    for item in ('a', 'a=b.py', 'a.py:b.pth', 'a=b.py:', 'a=b:c.pth'):
        with pytest.raises(ConfigError, match='must be NAME=CONFIG:CHECKPOINT'):
            parse_detectors([item])
    with pytest.raises(ConfigError, match=r"the name '\.\./a' must be"):
        parse_detectors(['../a=b.py:c.pth'])
    with pytest.raises(ConfigError, match='given to two detectors'):
        parse_detectors(['a=b.py:c.pth', 'a=d.py:e.pth'])


def test_choices_are_among_the_detectors():
    assert choose('--targets', None, ['a', 'b']) == ['a', 'b']
    assert choose('--targets', ['b'], ['a', 'b']) == ['b']
    with pytest.raises(ConfigError, match=r"--targets 'c' must be one of a, b"):
        choose('--targets', ['c'], ['a', 'b'])
    with pytest.raises(ConfigError, match='--sources has a twice'):
        choose('--sources', ['a', 'a'], ['a', 'b'])


@pytest.fixture
def call(project, tmp_path, monkeypatch, capsys):
    """Runs the tool in this process; returns status, output and errors."""

    def run(*arguments):
        monkeypatch.chdir(project)
        where = ('--work-dir', str(tmp_path / 'work'))
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments, *where])
        capsys.readouterr()
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return status, *capsys.readouterr()

    return run


PAIRS = ('small=small.py:small.pth', 'large=large.py:large.pth')


def test_the_tool(call, work_dir, done, monkeypatch):
    """With settings in other words: the images of the same ones are taken."""
    monkeypatch.setattr(Source, 'attack', _no_attack)
    settings = ['--eps=8/255', '--num-steps=2', '--num-images=3', f'--metric={KEY}']
    status, out, err = call(*PAIRS, '--targets', 'large', *settings)
    assert status == 0, err
    assert '| images made for | large |' in out
    content = json.loads((work_dir / 'transfer_matrix.json').read_text())
    assert len(content['entries']) == 2
    for entry in content['entries']:
        same = done.entry(entry['source'], entry['target'])
        assert same is not None
        assert entry['value'] == pytest.approx(same.value)
        assert entry['control'] == pytest.approx(same.control)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (('small=small.py',), 'must be NAME=CONFIG:CHECKPOINT'),
        (('small=no.py:small.pth',), "config 'no.py' does not exist"),
        (('small=small.py:no.pth',), "checkpoint 'no.pth' does not exist"),
        ((*PAIRS, '--attack', 'pdg'), "attack 'pdg' is unknown"),
        ((*PAIRS, '--eps', '0.03'), 'looks like the [0, 1] scale'),
        (
            (*PAIRS, '--targets', 'medium'),
            "--targets 'medium' must be one of small, large",
        ),
        ((*PAIRS, '--num-images', '0'), '--num-images=0 must be a whole number'),
        ((*PAIRS, '--num-images', '9'), 'num_images=9 is more than the 5 images'),
        (('a=small.py:large.pth',), 'say with --metric'),
    ],
)
def test_mistakes_end_with_one_sentence(call, arguments, sentence):
    status, _, err = call(*arguments)
    assert status == 2
    assert err.count('\n') == 1
    assert err.startswith('error: ')
    assert sentence in err
