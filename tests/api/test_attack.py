"""mmrobust.attack: pictures at hand, attacked in one call."""

from copy import deepcopy

import cv2
import mmrobust
import numpy as np
import pytest
import stored
import tiny
import torch
from evaluated import images_of
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.runner import Runner
from mmrobust.api.attacked import AttackedImages
from mmrobust.api.pictures import Pictures, meta_of_model
from mmrobust.errors import ConfigError

SETTINGS = dict(attack='pgd', eps=4, num_steps=2)


@pytest.fixture
def model(coco, tmp_path):
    """As init_detector returns it."""
    model = stored.detector('fcos')
    model.cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    model.dataset_meta = {'classes': tiny.CLASSES}
    return model


@pytest.fixture
def pictures(coco):
    """Paths of the tiny images."""
    return sorted(map(str, (coco / 'images').iterdir()))


@pytest.mark.parametrize('space', ['original', 'input'])
def test_no_radius_changes_nothing(space, model, pictures):
    """Predictions are those of mmdet's own inference, before and after.

    A picture's resizing with a gradient does not round to whole numbers.
    """
    settings = dict(attack='pgd', eps=0, num_steps=1, space=space)
    found = mmrobust.attack(model, pictures[:2], **settings)
    for each, path in zip(found, pictures, strict=False):
        expected = inference_detector(model, path).pred_instances
        assert len(expected)
        assert np.array_equal(each.adversarial_picture, each.picture)
        assert torch.equal(each.before.pred_instances.scores, expected.scores)
        assert torch.equal(each.before.pred_instances.bboxes, expected.bboxes)
        if space == 'input':
            assert torch.equal(each.after.pred_instances.scores, expected.scores)
        else:
            assert np.array_equal(each.picture, cv2.imread(path))
            gap = each.after.pred_instances.scores - expected.scores
            assert gap.abs().max() < 0.02
        assert each.loss_after == each.loss_before


def test_files_and_arrays_are_attacked_alike(model, pictures):
    """The best iterate is no worse than the picture, and inside of the ball."""
    (by_path,) = mmrobust.attack(model, pictures[0], **SETTINGS)
    (by_array,) = mmrobust.attack(model, cv2.imread(pictures[0]), **SETTINGS)
    assert torch.equal(by_path.adversarial, by_array.adversarial)
    delta = (by_path.adversarial - by_path.clean).abs().max()
    assert by_path.distance == float(delta) == 4
    assert by_path.loss_after > by_path.loss_before
    assert (by_path.backwards, model.training) == (2, False)


def test_what_is_saved_is_detected_as_it_says(model, pictures, tmp_path):
    """Noise of whole numbers on a picture loses nothing in a file of 8 bits."""
    noise = dict(type='mmrobust.RandomNoise', eps=4)
    (found,) = mmrobust.attack(model, pictures[0], attack=noise)
    found.adversarial.round_()
    path = str(tmp_path / 'attacked.png')
    found.save(path)
    assert np.array_equal(cv2.imread(path), found.adversarial_picture)
    again = mmrobust.attack(model, path, attack='pgd', eps=0, num_steps=1)[0]
    detected = inference_detector(model, path).pred_instances
    assert torch.equal(again.before.pred_instances.scores, detected.scores)
    with pytest.raises(ConfigError, match=r'must be a \.png file'):
        found.save(str(tmp_path / 'attacked.jpg'))


def test_a_dataloader_is_attacked_as_by_an_evaluation(model, evaluate, tmp_path):
    pgd = dict(type='mmrobust.PGD', eps=4, num_steps=2)
    evaluate(dict(pgd=pgd), save_adv=str(tmp_path / 'adv'))
    loader = Runner.build_dataloader(deepcopy(model.cfg.test_dataloader))
    found = mmrobust.attack(model, loader, pgd, space='input')
    saved = list(images_of(tmp_path / 'adv').values())
    assert len(saved) == len(found) == 6
    pairs = zip(found, saved, strict=True)
    assert all(torch.equal(each.adversarial, torch.tensor(old)) for each, old in pairs)
    assert found.labels_from == 'the ground truth of the dataloader'


def test_given_objects_are_those_of_the_annotations(model, pictures):
    """As dicts, as samples, and without any."""
    loader = Runner.build_dataloader(deepcopy(model.cfg.test_dataloader))
    samples = [batch['data_samples'][0] for batch in loader]
    truth = samples[1].gt_instances
    given = dict(bboxes=truth.bboxes.tensor.tolist(), labels=truth.labels.tolist())
    results = [
        mmrobust.attack(model, pictures[1], targets=targets, **SETTINGS)
        for targets in (given, truth, samples[1])
    ]
    expected = mmrobust.attack(model, loader, **SETTINGS)[1]
    for (found,) in results:
        assert found.loss_before == expected.loss_before
        assert len(found.truth.gt_instances) == len(truth) == 2
    empty = dict(bboxes=[], labels=[])
    (found,) = mmrobust.attack(model, pictures[1], targets=empty, **SETTINGS)
    assert len(found.truth.gt_instances) == 0


def test_results_show_themselves(model, pictures):
    found = mmrobust.attack(model, pictures[:2], **SETTINGS)
    rows = found.rows()
    assert [row['image'] for row in rows] == pictures[:2]
    assert [row['objects'] for row in rows] == [1, 2]
    assert found.table().count('\n') == 3
    assert "objects are the model's own detections with scores from 0.3" in repr(found)
    assert found._repr_html_().count('data:image/png;base64,') == 2
    sizes = [each.shape for each in found.pictures()]
    assert all(size[1] > 3 * size[0] for size in sizes)
    assert len(found.plot().axes) == 2


def test_objects_that_stick_out_leave_the_picture_where_it_is(model, pictures):
    """Nothing is drawn but their edges, and no margin around the picture."""
    height, width = cv2.imread(pictures[0]).shape[:2]
    target = dict(bboxes=[[-90, -90, width + 90, height + 90]], labels=[0])
    (found,) = mmrobust.attack(model, pictures[0], 'noise', target, eps=0)
    (plain,) = mmrobust.attack(
        model, pictures[0], 'noise', dict(bboxes=[], labels=[]), eps=0
    )
    drawn = [AttackedImages([each], {}, 'input', '', [], {}).pictures(2)[0]
             for each in (found, plain)]  # fmt: skip
    same = (drawn[0] == drawn[1]).all(axis=2)
    assert 0.8 < same.mean() < 1


def test_classes_are_named_by_the_test_data_if_the_checkpoint_does_not(model, pictures):
    model.dataset_meta = {'classes': None}
    model.cfg.test_dataloader.dataset.metainfo = {'classes': tiny.CLASSES}
    assert meta_of_model(model)['classes'] == tiny.CLASSES
    model.cfg.test_dataloader.dataset.metainfo = {'classes': ('a', 'b', 'c', 'd')}
    assert not meta_of_model(model).get('classes')


MISTAKES = {
    'no list': (dict(images=None), 'images=None must be paths'),
    'score': (dict(score_thr=2), 'score_thr=2 must be a number from 0 to 1'),
    'no target': (dict(targets=5), 'need bboxes'),
    'corners': (
        dict(targets=dict(bboxes=[[9, 9, 2, 2]], labels=[0])),
        'not .x1, y1, x2, y2. with',
    ),
    'model': (dict(model='x'), 'the model is a str: give a detector'),
    'no file': (dict(images='x.jpg'), 'image x.jpg does not exist'),
    'no images': (dict(images=[]), 'there is no image to attack'),
    'floats': (dict(images=np.zeros((4, 4, 3))), r'array of float64 \(4, 4, 3\)'),
    'a tensor': (dict(images=[torch.zeros(3, 4, 4)]), 'image 0 is a Tensor'),
    'name': (dict(attack='pgt'), "'pgt'"),
    'option': (dict(num_step=2), "'num_step'"),
    'space': (dict(space='disk'), "space='disk' is unknown"),
    'ensemble': (dict(attack='ensemble'), r'use mmrobust\.evaluate'),
    'options twice': (dict(attack=dict(type='mmrobust.PGD'), eps=2), 'eps belong'),
    'number of targets': (dict(targets=[{}, {}]), '1 images and 2 targets'),
    'keys of targets': (dict(targets={}), 'need bboxes'),
    'classes': (dict(targets=dict(bboxes=[[0, 0, 9, 9]], labels=[3])), 'classes 0 to'),
    'shapes': (dict(targets=dict(bboxes=[[0, 0, 9]], labels=[0])), r'\(1, 3\)'),
}


@pytest.mark.parametrize(('given', 'sentence'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_sentences(given, sentence, model, pictures):
    with pytest.raises(ConfigError, match=sentence):
        mmrobust.attack(**{'model': model, 'images': pictures[0], **given})


def test_pictures_say_their_classes_to_models_that_read_them():
    keys = ('img_id', 'text', 'custom_entities')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='PackDetInputs', meta_keys=keys),
    ]
    picture = np.zeros((8, 8, 3), np.uint8)
    found = Pictures([picture], pipeline, {'classes': ('cup', 'dog')})
    found.label([dict(bboxes=np.zeros((0, 4)), labels=np.zeros(0, int))])
    sample = found[0]['data_samples']
    assert (sample.text, sample.custom_entities) == (('cup', 'dog'), True)
