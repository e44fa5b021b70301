"""Pictures of attacks, pixel by pixel."""

import json

import cv2
import numpy as np
import pytest
import tiny
import torch
from evaluated import attack_of
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from mmrobust.evaluation.visualization import (
    AttackVisualizationHook,
    attack_picture,
    readable,
)
from mmrobust.frame import TO_INPUT
from mmrobust.geometry import Affine

HEIGHT, WIDTH = 64, 96
SCALE = 5  # small images are enlarged: round(320 / 64)
TITLE, GAP = 28, 6
PANEL = WIDTH * SCALE + GAP

CLEAN_BGR = (10, 100, 200)


def clean_image():
    return torch.tensor(CLEAN_BGR, dtype=torch.uint8)[:, None, None].expand(
        3, HEIGHT, WIDTH
    )


def attacked_image():
    """+4 in the blue channel of the left half, -2 in the red one of the right half."""
    image = clean_image().float().clone()
    image[0, :, : WIDTH // 2] += 4
    image[2, :, WIDTH // 2 :] -= 2
    return image


def prediction(boxes, scores):
    """A prediction in the frame of the original image, twice as large."""
    sample = DetDataSample(metainfo=dict(scale_factor=(0.5, 0.5), img_id=7))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.zeros(len(scores), dtype=torch.long),
    )
    return sample


def truth(boxes):
    sample = DetDataSample()
    sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4))
    return sample


def draw(clean, attacked, boxes):
    images = clean_image(), attacked_image()
    return attack_picture(
        DetLocalVisualizer(), *images, clean, attacked, boxes, 0.3, 'pgd'
    )


NOTHING = prediction([], [])


def panel(picture, number):
    """One of the three images, without its title."""
    left = number * PANEL
    return picture[TITLE:, left : left + WIDTH * SCALE].astype(int)


def test_three_panels_with_known_pixels():
    picture = draw(NOTHING, NOTHING, truth([]))
    assert picture.dtype == np.uint8
    assert picture.shape == (TITLE + HEIGHT * SCALE, 3 * PANEL, 3)
    left, right = WIDTH * SCALE // 4, 3 * WIDTH * SCALE // 4
    for row in (2, HEIGHT * SCALE - 3):
        # RGB: the loader's images are BGR.
        assert panel(picture, 0)[row, left].tolist() == [200, 100, 10]
        assert panel(picture, 0)[row, right].tolist() == [200, 100, 10]
        assert panel(picture, 1)[row, left].tolist() == [200, 100, 14]
        assert panel(picture, 1)[row, right].tolist() == [198, 100, 10]
        # The largest difference is 4, so the factor is int(127 / 4) = 31.
        assert panel(picture, 2)[row, left].tolist() == [128, 128, 128 + 31 * 4]
        assert panel(picture, 2)[row, right].tolist() == [128 - 31 * 2, 128, 128]
    # The border lies where it lay: nearest neighbour, no smoothing.
    middle = WIDTH * SCALE // 2
    assert panel(picture, 2)[9, middle - 1].tolist() == [128, 128, 252]
    assert panel(picture, 2)[9, middle].tolist() == [66, 128, 128]


@pytest.mark.parametrize('largest', [0, 0.3, 1, 8, 100, 255])
def test_the_difference_never_wraps_around(largest):
    """128 + factor * delta stays in 0-255; no difference is grey."""
    clean = torch.zeros(3, HEIGHT, WIDTH)
    attacked = clean.clone()
    attacked[:, :, 48:] = largest
    picture = attack_picture(
        DetLocalVisualizer(), clean, attacked, NOTHING, NOTHING, truth([]), 0.3, 'x'
    )
    factor = max(1, int(127 / max(largest, 1e-6)))
    expected = min(255, round(128 + factor * largest))
    assert (panel(picture, 2)[:, 300:] == expected).all()
    assert (panel(picture, 2)[:, :200] == 128).all()


def reddish(pixels):
    """Pixels of a detection's frame on the background of these pictures."""
    return (pixels[..., 0] > 205) & (pixels[..., 1] < 80)


def greenish(pixels):
    """Pixels of an object's frame."""
    return (pixels[..., 0] < 80) & (pixels[..., 1] > 150)


def test_boxes_are_drawn_in_the_frame_of_the_input():
    """Predictions come in the original frame, the ground truth in the input's."""
    # (40, 40, 80, 100) in the original frame is (20, 20, 40, 50) in the input's.
    clean = prediction([[40.0, 40, 80, 100]], [0.9])
    objects = truth([[60.0, 10, 90, 40]])
    picture = draw(clean, NOTHING, objects)
    found = np.argwhere(reddish(panel(picture, 0)))
    (top, left), (bottom, right) = found.min(0), found.max(0)
    # Frames are lines around the box; the label lies above its upper left corner.
    assert (left, right) == (pytest.approx(100, abs=3), pytest.approx(200, abs=3))
    assert (top, bottom) == (pytest.approx(100, abs=3), pytest.approx(250, abs=3))
    for number in (0, 1):  # the ground truth is on both images
        found = np.argwhere(greenish(panel(picture, number)))
        (top, left), (bottom, right) = found.min(0), found.max(0)
        assert (left, right) == (pytest.approx(300, abs=3), pytest.approx(450, abs=3))
        assert (top, bottom) == (pytest.approx(50, abs=3), pytest.approx(200, abs=3))
    # The attacked image has no detection, the difference no frames at all.
    assert not reddish(panel(picture, 1)).any()
    plain = draw(NOTHING, NOTHING, truth([]))
    assert np.array_equal(panel(picture, 2), panel(plain, 2))


def test_faint_detections_are_not_drawn_and_wild_ones_break_nothing():
    boxes = [[40.0, 40, 80, 100], [20.0, 20, 60, 60]]
    picture = draw(NOTHING, prediction(boxes, [0.29, 0.1]), truth([]))
    assert not reddish(panel(picture, 1)).any()
    picture = draw(NOTHING, prediction(boxes, [0.3, 0.1]), truth([]))
    assert reddish(panel(picture, 1)).any()
    assert not reddish(panel(picture, 0)).any()
    # Adversarial boxes may lie anywhere.
    wild = prediction([[-500.0, -500, 5000, 5000], [300.0, 300, 900, 900]], [0.9, 0.9])
    picture = draw(wild, wild, truth([]))
    assert picture.shape == (TITLE + HEIGHT * SCALE, 3 * PANEL, 3)


def test_a_line_of_pixels_is_not_enlarged_beyond_measure():
    line = torch.zeros(3, 1, 400)
    picture = attack_picture(
        DetLocalVisualizer(), line, line + 1, NOTHING, NOTHING, truth([]), 0.3, 'x'
    )
    assert picture.shape == (TITLE + 6, 3 * (2400 + GAP), 3)


def test_predictions_are_drawn_where_a_letterbox_put_them():
    """10 pixels to the right and 5 down, of half the size."""
    clean = prediction([[40.0, 40, 80, 100]], [0.9])
    objects = truth([])
    objects.set_metainfo({TO_INPUT: Affine(np.diag([0.5, 0.5]), np.array([10.0, 5.0]))})
    found = np.argwhere(reddish(panel(draw(clean, NOTHING, objects), 0)))
    (top, left), (bottom, right) = found.min(0), found.max(0)
    assert (left, right) == (pytest.approx(150, abs=3), pytest.approx(250, abs=3))
    assert (top, bottom) == (pytest.approx(125, abs=3), pytest.approx(275, abs=3))


# ---------------------------------------------------------------- in a test loop

NOISE = dict(type='mmrobust.RandomNoise', eps=8)


@pytest.fixture
def build(build_runner, coco):
    """Evaluations of three images."""

    def make(**hook):
        attacks = dict(noise=NOISE, pgd=dict(type='mmrobust.PGD', eps=4, num_steps=1))
        return build_runner(
            test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=attacks),
            test_dataloader=tiny.loader(coco, test=True, indices=3),
            default_hooks=dict(
                pictures=dict(type='mmrobust.AttackVisualizationHook', **hook)
            ),
        )

    return make


def test_files_go_where_show_dir_points(build, tmp_path):
    """Two pictures per attack, named by attack and image, lossless."""
    runner = build(num_images=2, out_dir='shown')
    adversarial = {}

    class Keep(Hook):
        def after_attack_iter(self, runner, batch_idx, **kwargs):
            key = (kwargs['attack'], kwargs['outputs'][0].img_id)
            adversarial[key] = kwargs['adversarial'][0]

    runner.register_hook(Keep())
    runner.test()
    folder = tmp_path / 'work' / runner.timestamp / 'shown' / 'attacks'
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        'attack_noise_10.png',
        'attack_noise_11.png',
        'attack_pgd_10.png',
        'attack_pgd_11.png',
    ]
    assert len(adversarial) == 6  # all images were attacked all the same
    # The written colours are right: the difference panel against the images.
    batch = next(iter(runner.test_dataloader))
    clean = batch['inputs'][0].float()
    delta = adversarial['noise', 10] - clean
    height, width = clean.shape[1:]
    scale = round(320 / min(height, width))
    written = cv2.imread(str(folder / 'attack_noise_10.png'))  # BGR, as the loader
    shown = written[TITLE:, 2 * (width * scale + GAP) :][: height * scale : scale]
    shown = shown[:, : width * scale : scale].transpose(2, 0, 1)
    assert np.array_equal(shown, 128 + 15 * delta.numpy())  # int(127 / 8) = 15


def test_pictures_go_to_the_visualizer_otherwise(build, tmp_path):
    runner = build(num_images=2)
    added = []
    runner.visualizer.add_image = lambda name, image, step: added.append((name, step))
    runner.test()
    expected = [
        (f'attack_{attack}_{image_id}', step)
        for attack in ('noise', 'pgd')
        for step, image_id in enumerate((10, 11))
    ]
    assert added == expected
    # A second evaluation in the same process draws anew.
    runner.test()
    assert added == expected * 2
    assert not list((tmp_path / 'work').rglob('attack_*.png'))


def test_the_clean_panel_shows_the_benign_detections(build):
    """Of the same image: ids, not positions, bring the two together."""
    runner = build(num_images=3)
    hook = next(h for h in runner._hooks if isinstance(h, AttackVisualizationHook))
    runner.visualizer.add_image = lambda *args: None
    benign = {}

    class Keep(Hook):
        def after_test_iter(self, runner, batch_idx, data_batch, outputs):
            for output in outputs:
                benign[output.img_id] = output.pred_instances.scores.clone()

    runner.register_hook(Keep())
    runner.test()
    assert sorted(benign) == sorted(hook._drawing.clean) == [10, 11, 12]
    for image_id, scores in benign.items():
        assert torch.equal(hook._drawing.clean[image_id].pred_instances.scores, scores)


def test_figures_of_a_test_go_to_the_backends(evaluate, tmp_path):
    """Those without attack and those under it, under the names of the evaluator."""
    backends = [dict(type='LocalVisBackend')]
    evaluate(
        dict(noise=dict(type='mmrobust.RandomNoise', eps=4)),
        overrides=dict(
            visualizer=dict(type='DetLocalVisualizer', vis_backends=backends),
            custom_hooks=[dict(type='mmrobust.AttackVisualizationHook', num_images=0)],
            # That a test does without the training data is no matter of hooks.
            train_dataloader=tiny.loader(tmp_path / 'gone', test=False),
        ),
    )
    (path,) = tmp_path.rglob('scalars.json')
    found = json.loads(path.read_text())
    report = json.loads((tmp_path / 'r.json').read_text())
    figures = report['benign']['metrics']['coco/bbox_mAP']
    assert found['coco/bbox_mAP'] == figures
    attacked = attack_of(report, 'noise')['metrics']['coco/bbox_mAP']
    assert found['noise/coco/bbox_mAP'] == attacked


def test_labels_hide_none_of_a_higher_score():
    """A letter is 8 x 16 pixels."""
    corners = [(0, 0), (15, 10), (16, 0), (0, 16), (100, 0)]
    labels, scores = ['ab'] * 5, [0.5, 0.9, 0.4, 0.3, 0.1]
    assert sorted(readable(corners, labels, scores)) == [1, 4]
    assert sorted(readable(corners, labels, [0.5, 0.2, 0.4, 0.3, 0.1])) == [0, 2, 3, 4]
    assert readable([], [], []) == []
