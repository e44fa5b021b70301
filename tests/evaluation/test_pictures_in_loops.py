"""Attacks on original pixels, and attacked images as pictures of 8 bits."""

import json
import pickle

import cv2
import numpy as np
import pytest
import tiny
import torch
from evaluated import ap, attack_of
from mmrobust.evaluation import attack_evaluation
from mmrobust.errors import ConfigError

PGD = dict(type='mmrobust.PGD', eps=8, num_steps=4)
# Not the pictures' own size, and not in the same ratio for all of them.
SCALE = (112, 84)
MAPS = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75')


def resizing(coco, **kwargs):
    return dict(test_dataloader=tiny.loader(coco, test=True, scale=SCALE, **kwargs))


def pictures_of(coco):
    """The dataset's pictures by image id."""
    content = json.loads((coco / 'annotations.json').read_text())
    return {
        str(image['id']): cv2.imread(str(coco / 'images' / image['file_name']))
        for image in content['images']
    }


def with_pictures(coco, saved, root):
    """The dataset with saved PNG files for pictures, and boxes resized with them."""
    content = json.loads((coco / 'annotations.json').read_text())
    sizes = {}
    for image in content['images']:
        picture = cv2.imread(str(saved / f'{image["id"]}.png'))
        size = picture.shape[1] / image['width'], picture.shape[0] / image['height']
        sizes[image['id']] = np.array(size * 2)
        image['height'], image['width'] = picture.shape[:2]
        (root / 'images').mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / 'images' / image['file_name']), picture)
    for found in content['annotations']:
        scale = sizes[found['image_id']]
        found['bbox'] = (np.array(found['bbox']) * scale).tolist()
        found['area'] *= float(scale[0] * scale[1])
    (root / 'annotations.json').write_text(json.dumps(content))
    return root


def plain_metrics(build_runner, trained, root):
    """mmdet's own test of a dataset."""
    evaluator = dict(type='CocoMetric', ann_file=str(root / 'annotations.json'))
    runner = build_runner(
        load_from=str(trained), test_evaluator=evaluator, **resizing(root)
    )
    return dict(runner.test())


@pytest.mark.parametrize('space', ['original', 'input'])
def test_pictures_are_scored_as_they_lie_on_disk(
    evaluate, build_runner, trained, coco, tmp_path, space
):
    """Another run of the plain pipeline on the saved files gives the same figures."""
    report = evaluate(
        dict(pgd=PGD),
        overrides=resizing(coco),
        space=space,
        quantize=True,
        save_adv=str(tmp_path / 'adv'),
    )
    pgd = attack_of(report, 'pgd')
    stored = pgd['quantized']
    assert report['space'] == space
    assert ap(report['benign']) > 0.2
    assert ap(pgd) < ap(report['benign'])
    # What is left is little, and says little; but it is something.
    assert stored['metrics']['coco/bbox_mAP'] > 0
    root = with_pictures(coco, tmp_path / 'adv' / 'pgd', tmp_path / 'attacked')
    expected = plain_metrics(build_runner, trained, root)
    for key in MAPS if space == 'input' else expected:
        assert stored['metrics'][key] == expected[key], key
    assert abs(ap(stored) - ap(pgd)) < 0.1
    assert 7 < stored['radius'] <= 8
    text = (tmp_path / 'r.md').read_text()
    assert 'As pictures' in text
    about = json.loads((tmp_path / 'adv' / 'pgd' / 'attack.json').read_text())
    assert about['space'] == space


def test_perturbations_of_original_pixels(evaluate, coco, tmp_path):
    pgd = dict(PGD, num_steps=2)
    evaluate(
        dict(pgd=pgd, l2=dict(pgd, norm='l2', eps=900)),
        overrides=resizing(coco),
        space='original',
        save_adv=str(tmp_path),
    )
    for name, norm, eps in (('pgd', np.inf, 8), ('l2', 2, 900)):
        for key, clean in pictures_of(coco).items():
            found = np.load(tmp_path / name / f'{key}.npz')['image']
            assert found.shape == (3, *clean.shape[:2])
            change = found.astype(np.float64) - clean.transpose(2, 0, 1)
            size = np.linalg.norm(change.ravel(), norm)
            assert 0.3 * eps < size <= eps * (1 + 1e-6)
            assert found.min() >= 0
            assert found.max() <= 255


def test_eps_0_changes_no_pixel(evaluate, coco, tmp_path):
    zero = dict(zero=dict(PGD, eps=0, num_steps=1))
    for space in ('original', 'input'):
        report = evaluate(
            zero,
            overrides=resizing(coco),
            space=space,
            quantize=True,
            save_adv=str(tmp_path / space),
        )
        entry = attack_of(report, 'zero')
        assert entry['quantized']['radius'] == 0
        benign = report['benign']['metrics']
        if space == 'input':
            assert entry['metrics'] == benign
            continue
        # The picture goes the way of the benign one; the copy of the pipeline that has
        # gradients does not round.
        assert entry['quantized']['metrics'] == benign
        assert ap(entry) == pytest.approx(ap(report['benign']), abs=0.03)
        for key, clean in pictures_of(coco).items():
            saved = cv2.imread(str(tmp_path / space / 'zero' / f'{key}.png'))
            assert np.array_equal(saved, clean)


def test_a_radius_in_l2_may_grow_by_rounding(evaluate, coco):
    """So that the report shows it."""
    small = dict(small=dict(PGD, norm='l2', eps=60))
    entry = attack_of(evaluate(small, quantize=True, num_images=2), 'small')
    # 0.5 of each of 3 * 96 * 128 values at most.
    assert entry['quantized']['radius'] != 60
    assert abs(entry['quantized']['radius'] - 60) < 0.5 * (3 * 96 * 128) ** 0.5


def test_masks(build_runner, coco, tmp_path):
    """Boxes and masks come out in the frame of the picture on disk."""
    torch.manual_seed(0)
    model = tiny.mask_rcnn()
    model['test_cfg']['rcnn'].update(score_thr=0.0, max_per_img=3)
    evaluator = [
        dict(
            type='CocoMetric',
            ann_file=str(coco / 'annotations.json'),
            metric=['bbox', 'segm'],
        ),
        dict(type='DumpDetResults', out_file_path=str(tmp_path / 'out.pkl')),
    ]
    test_cfg = dict(
        type='mmrobust.AttackTestLoop',
        attacks=dict(zero=dict(PGD, eps=0, num_steps=1), pgd=dict(PGD, num_steps=1)),
        space='original',
        quantize=True,
        num_images=2,
        report=str(tmp_path / 'r.json'),
    )
    build_runner(
        model,
        test_cfg=test_cfg,
        test_evaluator=evaluator,
        **resizing(coco, masks=True),
    ).test()
    report = json.loads((tmp_path / 'r.json').read_text())
    for attack in report['attacks']:
        assert attack['quantized']['metrics'].keys() == attack['metrics'].keys()
        assert 'coco/segm_mAP' in attack['metrics']

    def dumped(name):
        return list(pickle.loads((tmp_path / name).read_bytes()))

    benign = dumped('out.pkl')
    for ours, theirs in zip(dumped('out.zero.quantized.pkl'), benign, strict=True):
        assert ours['img_id'] == theirs['img_id']
        for key in ('bboxes', 'scores', 'labels'):
            expected = theirs['pred_instances'][key]
            assert len(expected) == 3
            assert torch.equal(ours['pred_instances'][key], expected)
        assert ours['pred_instances']['masks'] == theirs['pred_instances']['masks']
    changed = 0
    for ours, theirs in zip(dumped('out.pgd.quantized.pkl'), benign, strict=True):
        scores = ours['pred_instances']['scores']
        # PGD keeps the clean image where one step finds nothing better.
        changed += not torch.equal(scores, theirs['pred_instances']['scores'])
        sizes = {tuple(mask['size']) for mask in ours['pred_instances']['masks']}
        assert sizes == {tuple(theirs['ori_shape'])}
    assert changed


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize('loop', [dict(space='original'), dict(quantize=True)])
def test_a_pipeline_that_cannot_be_followed_is_refused(evaluate, coco, loop, tmp_path):
    loader = tiny.loader(coco, test=True)
    loader['dataset']['pipeline'].insert(3, dict(type='RandomFlip', prob=0.5))
    with pytest.raises(ConfigError, match='RandomFlip is none of'):
        evaluate(dict(pgd=PGD), overrides=dict(test_dataloader=loader), **loop)
    assert not (tmp_path / 'r.json').exists()


def test_classifiers_are_refused(evaluate, monkeypatch):
    monkeypatch.setattr(attack_evaluation, 'is_classifier', lambda model: True)
    for loop in (dict(space='original'), dict(quantize=True)):
        with pytest.raises(ConfigError, match='8 bits are for detectors: leave'):
            evaluate(dict(pgd=PGD), **loop)
