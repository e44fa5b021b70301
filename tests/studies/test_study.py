"""Which figure is compared, and what the folder of a study refuses."""

import pytest
from mmengine.config import Config
from mmrobust.errors import ConfigError
from mmrobust.studies.study import (
    choose_metric,
    metrics_of,
    open_store,
    settings_of,
    usual_keys,
)


@pytest.mark.parametrize(
    ('evaluator', 'sentence'),
    [
        ('CocoMetric', "'CocoMetric', which is no metric"),
        ([{'metric': 'bbox'}], 'a dict with a type'),
    ],
)
def test_an_evaluator_without_metrics(evaluator, sentence):
    with pytest.raises(ConfigError, match=sentence):
        metrics_of(evaluator)


def test_usual_keys_follow_the_metrics_settings():
    metrics = [
        {'type': 'mmpretrain.Accuracy', 'topk': (1, 5)},
        {'type': 'SingleLabelMetric', 'items': None, 'prefix': 'own'},
        {'type': 'CocoMetric', 'metric': ['segm', 'proposal']},
        {'type': 'Unheard'},
        {'type': 'VOCMetric'},
    ]
    keys = usual_keys({'metrics': metrics})
    assert keys[:2] == ['accuracy/top1', 'accuracy/top5']
    assert keys[2:5] == ['own/precision', 'own/recall', 'own/f1-score']
    assert keys[5:8] == ['coco/segm_mAP', 'coco/segm_mAP_50', 'coco/segm_mAP_75']
    assert keys[11:] == ['pascal_voc/mAP', 'pascal_voc/AP50']


def test_the_figure_is_among_those_that_there_are():
    cfg = Config({'test_cfg': {'attacks': {'pgd': {}}}})
    assert choose_metric(None, ['a', 'b'], cfg) == ('a', [])
    assert choose_metric('pgd/b', ['a', 'b'], cfg) == ('pgd/b', [])
    assert 'could not be checked' in choose_metric('b', [], cfg)[1][0]
    with pytest.raises(ConfigError, match='choose from a, b, pgd/a, pgd/b'):
        choose_metric('c', ['a', 'b'], cfg)
    with pytest.raises(ConfigError, match='say with --metric'):
        choose_metric(None, [], cfg)


def test_what_cannot_change_figures_is_no_setting():
    cfg = {
        'work_dir': 'x',
        'optim_wrapper': {'optimizer': {'lr': 0.1, 'momentum': 0.9}},
        'randomness': {'seed': 1, 'deterministic': True},
        'loaders': [{'num_workers': 3, 'batch_size': 2}],
        'default_hooks': {'logger': {'interval': 5}},
    }
    assert settings_of(cfg) == {
        'optim_wrapper': {'optimizer': {'momentum': 0.9}},
        'randomness': {'deterministic': True},
        'loaders': [{'batch_size': 2}],
    }


def test_settings_bind_only_results(tmp_path):
    def opened(value, **more):
        run = {'lr': value, 'files': {str(value): value}, **more}
        found = tmp_path.glob('*.txt')
        open_store(tmp_path, run, 'study.json', found, growing=('files',))

    opened(1)
    opened(2)  # nothing has been made with the first ones
    (tmp_path / 'result.txt').touch()
    opened(2)
    opened(2, files={'3': 3})  # more may join
    with pytest.raises(ConfigError, match=r'files.3 was 3 and is 4'):
        opened(2, files={'3': 4})
    with pytest.raises(ConfigError, match=r'lr was 2 and is 1.* another --work-dir'):
        opened(1)
    (tmp_path / 'study.json').unlink()
    with pytest.raises(ConfigError, match=r'holds results but no study\.json'):
        opened(2)
