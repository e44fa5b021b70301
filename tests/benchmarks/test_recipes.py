"""What is counted over a folder of configs."""

import sys


from benchmarks import recipes

SCHEDULES = {
    'good.py': "dict(type='CosineAnnealingLR', end=12, eta_min=0.001)",
    'foreign.py': "dict(type='LinearLR', end=2, start_factor=2.0)",  # mmengine refuses
}


def test_configs_are_counted_by_what_becomes_of_them(tmp_path, monkeypatch, capsys):
    base = "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
    for name, scheduler in SCHEDULES.items():
        (tmp_path / name).write_text(f'{base}param_scheduler = [{scheduler}]\n')
    (tmp_path / 'tta.py').write_text('tta_model = dict()\n')
    monkeypatch.setattr(sys, 'argv', ['recipes', str(tmp_path), '--list'])
    recipes.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        'foreign.py: converted, and its schedule fails: ValueError',
        'good.py: converted',
        'tta.py: refused: config * has no model.',
    ]
    assert lines[-1].split() == ['3', 'configs']


def test_a_broken_ratio_is_noticed(monkeypatch):
    stock = recipes.robustify

    def absolute(path):
        cfg = stock(path)
        cfg.param_scheduler = [dict(type='CosineAnnealingLR', end=6, eta_min=1e-5)]
        return cfg

    monkeypatch.setattr(recipes, 'robustify', absolute)
    found = recipes.examine('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    assert found.endswith('breaks the ratio of backbone and rest')
