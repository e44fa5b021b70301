"""The report: the contract of its keys, and writing that loses nothing."""

import json

import pytest

from mmrobust.report import AttackResult, RobustnessReport
from mmrobust.utils.files import file_sha256

SETTINGS = dict(
    norm='linf', eps=4.0, step_size=1.0, num_steps=10, objective='cls', restarts=2
)


def _report():
    dataset = {'type': 'CocoDataset', 'ann_file': 'a.json', 'num_images': 5}
    report = RobustnessReport('c.py', 'c.pth', '00', 3, {'torch': '2'}, dataset)
    report.environment = {'command': ['tools/test.py', 'a b']}
    report.benign = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_s': float('nan')}
    metrics = {'coco/bbox_mAP': 0.125}
    report.attacks = [AttackResult('cls', SETTINGS, metrics, ['a doubt'], 11, 10, 2.5)]
    return report


def test_keys_and_values(tmp_path):
    path = tmp_path / 'deeper' / 'robustness.json'
    _report().write(path, complete=True)
    content = json.loads(path.read_text())
    assert {
        'config', 'checkpoint', 'checkpoint_sha256', 'seed', 'versions', 'dataset',
        'benign', 'attacks', 'complete',
    } <= content.keys()  # fmt: skip
    assert content['complete'] is True
    assert content['dataset']['ann_file'] == 'a.json'
    assert content['dataset']['num_images'] == 5
    # JSON has no NaN; a reader gets null.
    assert content['benign'] == {
        'metrics': {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_s': None}
    }
    cost = dict(images=0, forwards=11, backwards=10, queries=0, seconds=2.5)
    metrics, checks = {'coco/bbox_mAP': 0.125}, ['a doubt']
    (entry,) = content['attacks']
    assert entry.pop('cost') == {**cost, 'per_image': None}
    assert entry == {'name': 'cls', **SETTINGS, 'metrics': metrics, 'checks': checks}


def test_markdown_twin(tmp_path):
    _report().write(tmp_path / 'r.json', complete=False)
    text = (tmp_path / 'r.md').read_text()
    assert 'Not complete' in text
    assert '| none (benign) |  |  |  |  | 0.500 |' in text
    assert '| cls | linf | 4 | 10 x 2 | cls | 0.125 |' in text
    assert '- cls: a doubt' in text
    assert '| cls | - | 11 | 10 | 2.5 | - | - | - |' in text
    assert "tools/test.py 'a b'" in text  # can be pasted into a shell


@pytest.mark.parametrize(
    ('dataset', 'shown'),
    [
        (dict(ann_file='a.json', data_root='d', type='CocoDataset'), 'a.json'),
        (dict(ann_file='', data_root='d', type='CustomDataset'), 'd'),
        (dict(ann_file='', data_root=None, type='Mine'), 'Mine'),
    ],
)
def test_the_dataset_is_named_by_what_it_has(dataset, shown):
    report = _report()
    report.dataset = {**dataset, 'num_images': 5}
    assert f'- dataset: {shown}, 5 images\n' in report.markdown()


def test_hash_of_a_file(tmp_path):
    path = tmp_path / 'f'
    path.write_bytes(b'abc')
    # The well-known SHA-256 of "abc".
    assert file_sha256(str(path)).startswith('ba7816bf8f01cfea414140de5dae2223')
    assert file_sha256('https://host/file.pth') is None
    assert file_sha256(None) is None


@pytest.mark.parametrize(
    ('space', 'words'),
    [('input', 'on the network input.'), ('original', "the dataset's pictures")],
)
def test_the_report_says_where_eps_is_measured(space, words):
    report = _report()
    report.space = space
    assert report.as_dict()['space'] == space
    assert words in report.markdown()
    assert words.replace("'", '&#x27;') in report.html()
