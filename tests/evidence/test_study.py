"""The study of experiments/evidence: its data, its grid, its runs and its tables."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmrobust.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'experiments' / 'evidence'
RESULTS = FOLDER / 'results'
PHOTOGRAPHS = ROOT / 'experiments' / 'methods' / 'results'
MODULES = ('data', 'grid', 'models', 'runs', 'tables', 'plots', 'run')


@pytest.fixture(scope='module')
def study():
    """Modules of the study by name; their short names are gone afterwards."""
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture(scope='module')
def cifar10(tmp_path_factory, study):
    """Twelve training and eight test pictures of every class, of one colour each."""
    folder = tmp_path_factory.mktemp('pictures') / 'cifar10'
    for split, count in (('train', 12), ('test', 8)):
        for label, name in enumerate(study['data'].CIFAR10):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                picture = np.full((32, 32, 3), 20 * label + index, np.uint8)
                path = folder / split / name / f'{index:04d}.png'
                cv2.imwrite(str(path), picture)
    return folder


@pytest.fixture(scope='module')
def made(tmp_path_factory, study, cifar10):
    """The data made of them: folder and content of data.json."""
    root = tmp_path_factory.mktemp('made') / 'data'
    amounts = study['data'].Amounts(12, 6, (128, 160))
    return root, study['data'].make_data(root, cifar10, amounts)


class TestData:
    def test_no_picture_is_in_two_sets(self, made):
        root, data = made
        for split, objects, upstream in (('train', 3, 9), ('test', 4, 4)):
            content = json.loads((root / 'detection' / f'{split}.json').read_text())
            pasted = {each['picture'] for each in content['annotations']}
            listed = {
                f'{split}/{line.split()[0]}'
                for line in (root / f'upstream_{split}.txt').read_text().splitlines()
            }
            assert all(name.startswith(f'{split}/') for name in pasted)
            assert len(listed) == 10 * upstream == data['counts'][f'upstream_{split}']
            assert not pasted & listed
            assert len(pasted) <= 10 * objects

    def test_boxes_and_outlines_bound_what_was_pasted(self, made, cifar10):
        root, _ = made
        ovals = 0
        content = json.loads((root / 'detection' / 'train.json').read_text())
        sizes = set()
        for each in content['annotations']:
            name = content['images'][each['image_id']]['file_name']
            image = cv2.imread(str(root / 'detection' / 'train' / name))
            sizes.add(image.shape[:2])
            x, y, width, height = each['bbox']
            assert 24 <= width == height <= 64
            patch = image[y : y + height, x : x + width]
            assert patch.shape[:2] == (height, width)
            color = cv2.imread(str(cifar10 / each['picture']))[0, 0]
            inside = np.zeros(patch.shape[:2], np.uint8)
            outline = np.array(each['segmentation'][0]).reshape(-1, 2) - [x, y]
            cv2.fillPoly(inside, [np.rint(outline).astype(np.int32)], 1)
            same = (patch == color).all(-1)
            # All but pixels that the outline cuts.
            border = (
                cv2.dilate(inside, np.ones((3, 3)))
                - cv2.erode(np.pad(inside, 1), np.ones((3, 3)))[1:-1, 1:-1]
            )
            assert same[(inside == 1) & (border == 0)].all()
            oval = len(each['segmentation'][0]) > 8
            ovals += oval
            assert each['area'] == pytest.approx(
                width**2 * (np.pi / 4 if oval else 1), rel=0.01
            )
        assert 0 < ovals < len(content['annotations'])
        assert all(128 <= side <= 160 for size in sizes for side in size)
        assert len(sizes) > 1

    def test_objects_do_not_meet(self, made):
        root, _ = made
        content = json.loads((root / 'detection' / 'train.json').read_text())
        by_image = {}
        for each in content['annotations']:
            by_image.setdefault(each['image_id'], []).append(each['bbox'])
        assert {len(boxes) for boxes in by_image.values()} <= {1, 2, 3, 4, 5}
        for boxes in by_image.values():
            for i, (x, y, w, h) in enumerate(boxes):
                for left, top, width, height in boxes[:i]:
                    apart_x = x >= left + width or left >= x + w
                    apart_y = y >= top + height or top >= y + h
                    assert apart_x or apart_y

    def test_halves_of_the_classes(self, made):
        root, _ = made

        def read(suffix):
            lines = (root / f'upstream_train{suffix}.txt').read_text().splitlines()
            return {(path, int(label)) for path, label in map(str.split, lines)}

        first, last, everything = read('_first'), read('_last'), read('')
        assert first | {(path, label + 5) for path, label in last} == everything
        assert {label for _, label in last} == set(range(5))

    def test_the_same_again(self, made, study, cifar10, tmp_path):
        root, data = made
        amounts = study['data'].Amounts(12, 6, (128, 160))
        again = study['data'].make_data(tmp_path / 'again', cifar10, amounts)
        assert again['sha256'] == data['sha256']
        image = 'detection/train/00003.png'
        assert (tmp_path / 'again' / image).read_bytes() == (root / image).read_bytes()
        assert study['data'].make_data(root, cifar10, amounts) == data  # made once
        with pytest.raises(ConfigError, match='give another --work-dir'):
            study['data'].make_data(root, cifar10, study['data'].Amounts(13, 6))

    def test_what_is_not_cifar10(self, study, tmp_path):
        with pytest.raises(ConfigError, match=r'train/airplane.* has no pictures'):
            study['data'].make_data(
                tmp_path / 'data', tmp_path, study['data'].Amounts(1, 1)
            )
        assert not (tmp_path / 'data').exists()

    def test_a_digit_in_other_colours_stays_in_its_set(self, study, tmp_path):
        for name in '01':
            (tmp_path / name).mkdir()
            for digit in range(8):
                for copy in range(4):
                    (tmp_path / name / f'{digit:04d}_{copy}.png').touch()
        objects, others = study['data'].share_out(tmp_path, ('0', '1'), 'train', 0)
        assert len(objects) == 2 * 2 * 4
        digits = [
            {path.split('_')[0] for path, _ in part} for part in (objects, others)
        ]
        assert not digits[0] & digits[1]


class TestGrid:
    @pytest.mark.parametrize('scale', ['smoke', 'small', 'full'])
    def test_every_need_comes_first(self, study, scale):
        grid = study['grid']
        runs = grid.Grid(grid.SCALES[scale]).build(grid.CLAIMS, grid.SEEDS)
        seen = set()
        for run in runs:
            assert set(run.needs.values()) <= seen, run.name
            assert run.kind in study['runs'].KINDS
            seen.add(run.name)
        for claim in grid.CLAIMS:
            for seed in grid.SEEDS:
                assert any(claim in r.claims and r.seed == seed for r in runs)

    def test_methods_are_compared_at_equal_cost(self, study):
        grid = study['grid']
        made = grid.Grid(grid.SCALES['small'])
        made.build(grid.CLAIMS, (0,))
        settings = {name: run.settings for name, run in made.runs.items()}
        free = settings['detector/faster-rcnn-robust-free/seed0']
        pgd = settings['detector/faster-rcnn-robust-pgd/seed0']
        assert free['passes'] == pgd['passes'] == free['updates']
        assert pgd['updates'] == pytest.approx(free['updates'] / 3, abs=1)
        standard = settings['classifier/resnet18-eps0/seed0']
        robust = settings['classifier/resnet18-eps4/seed0']
        assert standard['passes'] == robust['passes'] == standard['updates']
        assert robust['updates'] == pytest.approx(0.3 * standard['updates'], abs=1)

    def test_a_long_pretraining_has_the_updates_of_the_standard_one(self, study):
        grid = study['grid'].Grid(study['grid'].SCALES['medium'])
        settings = {run.name: run.settings for run in grid.build((1,), (0,))}
        standard = settings['classifier/resnet18-eps0/seed0']
        long = settings['classifier/resnet18-eps4-3.33/seed0']
        assert long['updates'] == standard['updates']
        assert long['passes'] == pytest.approx(10 / 3 * standard['passes'])
        detector = grid.runs['detector/faster-rcnn-robust-long-free/seed0']
        assert detector.needs == {'start': 'classifier/resnet18-eps4-3.33/seed0'}

    def test_the_budget_from_scratch_counts_the_pretraining(self, study):
        grid = study['grid']
        scale = grid.SCALES['small']
        passes = grid.Grid(scale).equal_budget() - scale.detector
        pixels = passes * scale.detector_batch * 96**2
        assert pixels == pytest.approx(scale.upstream * 64 * 40**2)


@pytest.fixture(scope='module')
def tiny_study(study, made, tmp_path_factory):
    """A study on the made data, in which everything is as short as it can be."""
    root, data = made
    scale = study['grid'].Scale(
        study['data'].Amounts(12, 6, (128, 160)), 10, 4, 2, 2, 2, 4, 2, 2, 2
    )
    work_dir = tmp_path_factory.mktemp('study')
    (work_dir / 'data').symlink_to(root)
    return study['runs'].Study(work_dir, data, scale)


class TestRuns:
    def test_from_the_classifier_to_the_table(self, study, tiny_study, monkeypatch):
        attacks = {
            name: {**config, 'num_steps': 1}
            for name, config in study['grid'].ATTACKS.items()
        }
        monkeypatch.setattr(study['runs'], 'ATTACKS', attacks)
        grid = study['grid'].Grid(tiny_study.scale)
        name = grid.detector(1, 0, 'robust')
        first = grid.runs[grid.runs[name].needs['start']]
        assert not study['run'].is_done(first, tiny_study)
        classifier = study['runs'].do(first, tiny_study)
        assert 0 <= classifier['metrics']['accuracy/top1'] <= 100
        record = study['runs'].do(grid.runs[name], tiny_study)
        assert study['run'].is_done(grid.runs[name], tiny_study)
        assert [each['name'] for each in record['attacks']] == list(attacks)
        # The detector has started from the classifier's backbone.
        paths = [tiny_study.checkpoint(each) for each in (first.name, name)]
        start, end = (
            torch.load(path, weights_only=False)['state_dict'] for path in paths
        )
        change = end['backbone.conv1.weight'] - start['backbone.conv1.weight']
        assert 0 < change.abs().max() < 0.01 < start['backbone.conv1.weight'].std()
        grid.runs[name].settings['lr'] = 1
        with pytest.raises(ConfigError, match='made with other settings'):
            study['run'].is_done(grid.runs[name], tiny_study)
        found = study['tables'].Store.read(tiny_study.work_dir)
        assert found.values('detector/faster-rcnn-robust-free', study['tables'].worst)
        study['tables'].write_results(found, tiny_study.work_dir)
        text = (tiny_study.work_dir / 'evidence.md').read_text()
        assert 'FreeAT, robust backbone' in text
        assert '(n = 1)' in text
        assert (tiny_study.work_dir / 'detectors.png').stat().st_size > 1000


def row(seed, benign, attacked):
    return {
        'name': f'detector/faster-rcnn-robust-free/seed{seed}',
        'seed': seed,
        'settings': {'passes': 400, 'updates': 400},
        'train_seconds': 60.0,
        'benign': {'coco/bbox_mAP': benign},
        'attacks': [
            {'name': name, 'metrics': {'coco/bbox_mAP': attacked + shift}}
            for shift, name in enumerate(('total', 'cls', 'reg', 'cwa'))
        ],
    }


class TestTables:
    def test_mean_and_standard_deviation(self, study):
        tables = study['tables']
        assert tables.spread([1.0, 2.0, 6.0]) == '3.0 ± 2.6'
        assert tables.spread([1.0, 2.0]) == '1.5 ± 0.7 (n = 2)'
        assert tables.spread([]) == ''

    def test_a_row_comes_from_its_records(self, study):
        tables = study['tables']
        records = tables.Store([row(0, 0.5, 0.25), row(1, 0.7, 0.05), row(2, 0.6, 0)])
        text = tables.detectors(records, tables.rows_of(records, '1'))
        line = next(each for each in text.splitlines() if 'robust backbone' in each)
        cells = [cell.strip() for cell in line.split('|')[1:-1]]
        assert cells[:3] == ['FreeAT, robust backbone', '60.0 ± 10.0', '10.0 ± 13.2']
        assert cells[-1] == cells[2]  # the lowest is that under 'total'

    def test_the_matrix_has_sources_below_and_targets_beside(self, study):
        tables = study['tables']
        cells = {
            'clean': {'a': 0.5, 'b': 0.4},
            'a': {'a': 0.1, 'b': 0.3},
            'b': {'a': 0.2, 'b': 0.0},
        }
        found = {'sources': ['a', 'b'], 'targets': ['a', 'b'], 'matrix': cells}
        records = tables.Store(
            [{'name': 'matrix/pgd/seed0', 'seed': 0, 'matrix': found}]
        )
        lines = tables.matrix(records).splitlines()
        assert lines[0].split(' | ')[1:] == ['a', 'b |']
        assert lines[3] == '| a | 10.0 (n = 1) | 30.0 (n = 1) |'
        assert tables.matrix(tables.Store([])) == '(not run)\n'


def test_figures_of_the_page_are_in_the_tables():
    page = (ROOT / 'docs' / 'evidence.md').read_text()
    paths = [*RESULTS.glob('*/evidence.md'), *PHOTOGRAPHS.glob('*.md')]
    tables = ''.join(path.read_text() for path in paths)
    figures = re.findall(r'\d+\.\d ± \d+\.\d', page)
    assert len(figures) > 20
    assert [figure for figure in figures if figure not in tables] == []


def test_tables_of_photographs_are_those_of_the_records():
    published = (PHOTOGRAPHS / 'blood-cells.md').read_text()
    script = PHOTOGRAPHS.parent / 'tables.py'
    of_file = runpy.run_path(str(script))['of_file']
    records = sorted(PHOTOGRAPHS.glob('blood-cells-*.json'))
    assert records
    for path in records:
        assert of_file(path) in published, path
    matrix = json.loads((PHOTOGRAPHS / 'transfer-blood-cells.json').read_text())
    rows = [line for line in published.splitlines() if line.startswith('| ')]
    for name in matrix['clean']:
        made = [each for each in matrix['entries'] if each['source'] == name]
        cells = [f'{each["value"]:.3f} ({-each["fall"]:.3f})' for each in made]
        assert len(cells) == len(matrix['clean'])
        plain = [row.replace('*', '') for row in rows if row.startswith(f'| {name} |')]
        assert f'| {name} | {" | ".join(cells)} |' in plain


@pytest.mark.parametrize(
    'folder',
    sorted(p.parent for p in RESULTS.glob('*/records.json')),
    ids=lambda p: p.name,
)
def test_published_tables_are_those_of_the_records(study, folder):
    """What docs/evidence.md leads to is what the records give."""
    tables = study['tables']
    published = (folder / 'evidence.md').read_text()
    records = tables.Store.read(folder)
    for heading, body in tables.sections(records):
        assert body.strip() in published, heading
