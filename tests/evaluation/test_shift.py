"""Natural shift: the benign pass on other datasets of the same classes."""

import json
from pathlib import Path

import pytest
import tiny
from evaluated import ap
from mmrobust.errors import ConfigError
from mmrobust.evaluation.shift import ShiftedData, read_shifts

NOISE = dict(noise=dict(type='mmrobust.RandomNoise', eps=8))


@pytest.fixture(scope='module')
def night(tmp_path_factory):
    return tiny.make_coco(tmp_path_factory.mktemp('night'), num_images=4, seed=5)


def text_of(folder, images='images'):
    return f'{folder / "annotations.json"},{folder / images}'


def test_figures_are_those_of_the_dataset_itself(
    evaluate, coco, night, build_runner, trained, tmp_path
):
    shifts = {'night': text_of(night), 'same': text_of(coco)}
    report = evaluate(NOISE, shifts=shifts, check_images=0, gallery=0)
    found, same = report['shifts']
    metric = dict(
        type='CocoMetric', ann_file=str(night / 'annotations.json'), metric='bbox'
    )
    stock = build_runner(
        load_from=str(trained),
        test_dataloader=tiny.loader(night, test=True),
        test_evaluator=metric,
    ).test()
    assert found['metrics'] == dict(stock)
    assert found['images'] == 4
    assert found['metrics'] != report['benign']['metrics']
    # Of the evaluated dataset itself all figures are those of the benign pass.
    assert same['metrics'] == report['benign']['metrics']
    benign = report['benign']['boxes']
    assert same['boxes']['mAP'] == benign['mAP']
    assert same['boxes']['calibration'] == benign['calibration']
    text = (tmp_path / 'r.md').read_text()
    share = ap(found) / ap(report['benign'])
    (row,) = [line for line in text.splitlines() if line.startswith('| night |')]
    assert f'| {share:.1%} |' in row
    assert '| same | 6 |' in text
    assert report['worst_case'] is None
    few = evaluate(NOISE, shifts=shifts, num_images=2, check_images=0, gallery=0)
    assert [each['images'] for each in few['shifts']] == [2, 2]


def build(build_runner, trained, text, **overrides):
    runner = build_runner(load_from=str(trained), **overrides)
    (shift,) = read_shifts([f'night={text}'], ())
    return ShiftedData(shift, runner, None, 0, tiny.CLASSES)


def test_what_is_missing_is_found_before_any_pass(
    build_runner, trained, coco, night, tmp_path
):
    with pytest.raises(
        ConfigError, match=r'4 of the 4 pictures of shift .night. do not'
    ):
        build(build_runner, trained, text_of(night, 'pictures'))
    content = json.loads((night / 'annotations.json').read_text())
    content['categories'][0]['name'] = 'globe'
    path = tmp_path / 'renamed.json'
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="'disc'"):
        build(build_runner, trained, f'{path},{Path(night) / "images"}')
    wrapper = dict(
        tiny.loader(coco, test=True),
        dataset=dict(
            type='ConcatDataset', datasets=[tiny.loader(coco, test=True)['dataset']]
        ),
    )
    with pytest.raises(ConfigError, match='test on a plain dataset'):
        build(build_runner, trained, text_of(night), test_dataloader=wrapper)


def test_names():
    for text in ('night', 'night=a', '=a,b', 'a/b=c,d', 'night=,b'):
        with pytest.raises(ConfigError, match='give NAME=ANN_FILE,PREFIX'):
            read_shifts([text], ())
    for text in ('pgd=a,b', 'benign=a,b'):
        with pytest.raises(ConfigError, match='the name of another pass'):
            read_shifts([text], ['pgd'])
