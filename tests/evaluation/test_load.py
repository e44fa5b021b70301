"""What predictions cost, in the report of an evaluation with a latency attack."""

import tiny
import torch
from evaluated import attack_of
from mmdet.registry import DATASETS
from mmengine.dataset import pseudo_collate

from mmrobust.evaluation import attack_evaluation, attack_pass, benign_pass
from mmrobust.objective import suppressing

LATENCY = dict(type='mmrobust.PGD', eps=8, num_steps=1, objective='latency')


class Interrupted(BaseException):
    """Not an Exception: nothing may take it for a mishap and go on."""


def test_a_resumed_evaluation_tells_the_load_once_measured(evaluate, coco, monkeypatch):
    """By raw outputs: class scores above 0.01, of at most 100 a level."""

    def cut(*args):
        raise Interrupted

    def measures(*args):
        raise AssertionError('the loads are on record')

    attacks = dict(latency=LATENCY, noise=dict(type='mmrobust.RandomNoise', eps=8))
    settings = dict(num_images=2, check_images=0)
    with monkeypatch.context() as patch:
        patch.setattr(attack_evaluation, 'comparison_verdicts', cut)
        try:
            evaluate(attacks, **settings)
        except Interrupted:
            model = evaluate.runner.model
            chosen = evaluate.runner.test_loop.dataloader.dataset
    monkeypatch.setattr(benign_pass, 'load_of', measures)
    monkeypatch.setattr(attack_pass, 'load_of', measures)
    report = evaluate(attacks, **settings)

    ids = [chosen[place]['data_samples'].img_id for place in range(2)]
    data = DATASETS.build(tiny.dataset(coco, False))
    counts, bounds = [], []
    for item in data:
        if item['data_samples'].img_id in ids:
            batch = model.data_preprocessor(pseudo_collate([item]), False)
            with torch.no_grad():
                levels = model(batch['inputs'], mode='tensor')[0]
            passed = [int((level.sigmoid() > 0.01).sum()) for level in levels]
            counts.append(sum(min(100, each) for each in passed))
            bounds.append(sum(min(100, level.numel()) for level in levels))
    load = report['benign']['load']
    assert load['candidates'] == sum(counts) / 2
    assert load['bound'] == sum(bounds) / 2
    assert (load['max_per_img'], load['images']) == (20, 2)
    assert suppressing(model)[0].test_cfg.max_per_img == 20
    assert load['detections'] <= 20
    assert load['seconds'] > 0
    for name in attacks:
        assert attack_of(report, name)['load']['bound'] == load['bound']
    page = (evaluate.folder / 'r.md').read_text()
    row = f'| none (benign) | {load["candidates"]:.1f} | {load["bound"]:.1f} |'
    assert row in page.split('## Load of suppression')[1]
