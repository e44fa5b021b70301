"""MAITE's own tools on our detectors and attacks."""

from types import SimpleNamespace

import cv2
import mmrobust
import numpy as np
import pytest
import stored
import tiny
from maite.protocols import object_detection as od
from maite.tasks import predict
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmrobust.api import MaiteAttack, MaiteModel
from mmrobust.errors import ConfigError


class Images:
    """The tiny images as a dataset of MAITE's."""

    metadata = {'id': 'tiny'}

    def __init__(self, coco):
        self.paths = sorted((coco / 'images').iterdir())[:3]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        picture = cv2.imread(str(self.paths[index]))
        target = SimpleNamespace(
            boxes=np.array([[8, 8, 40, 40]]), labels=np.array([0]), scores=np.ones(1)
        )
        return picture[..., ::-1].transpose(2, 0, 1), target, {'id': index}


@pytest.fixture
def model(coco, tmp_path):
    model = stored.detector('fcos')
    model.cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    model.dataset_meta = {'classes': tiny.CLASSES}
    return model


def test_maite_predicts_on_attacked_images(model, coco):
    """What its workflow gives is what mmdet detects in the images attacked here."""
    images = Images(coco)
    wrapped, attack = MaiteModel(model), MaiteAttack(model, eps=4, num_steps=1)
    assert isinstance(wrapped, od.Model)
    assert isinstance(attack, od.Augmentation)
    assert wrapped.metadata['index2label'] == dict(enumerate(tiny.CLASSES))
    predictions, seen = predict(
        model=wrapped,
        dataset=images,
        batch_size=2,
        augmentation=attack,
        return_augmented_data=True,
    )
    found = [each for batch in predictions for each in batch]
    data = [row for batch in seen for row in zip(*batch, strict=True)]
    assert len(found) == len(data) == 3
    for index, (one, (image, _, about)) in enumerate(zip(found, data, strict=True)):
        clean, _, _ = images[index]
        assert about == {'id': index, 'perturbation': 4.0}
        assert np.abs(image.astype(int) - clean).max() == 4
        picture = np.ascontiguousarray(image.transpose(1, 2, 0)[..., ::-1])
        expected = inference_detector(model, picture).pred_instances
        assert np.array_equal(one.boxes, expected.bboxes.numpy())
        assert np.array_equal(one.scores, expected.scores.numpy())
        assert np.array_equal(one.labels, expected.labels.numpy())


def test_draws_depend_on_the_id_alone(model, coco):
    images = Images(coco)
    attack = MaiteAttack(model, 'noise', eps=4)
    rows = [images[index] for index in (0, 1)]
    both, _, _ = attack(tuple(zip(*rows, strict=True)))
    alone, _, _ = attack(tuple(zip(rows[1], strict=True)))
    assert np.array_equal(both[1], alone[0])


def test_other_images_are_refused(model):
    wrapped = MaiteModel(model, channels='bgr')
    assert wrapped([]) == []
    for image in (np.full((3, 4, 4), 0.5), np.zeros((4, 4)), np.full((3, 4, 4), 256.0)):
        with pytest.raises(ConfigError, match='whole numbers from 0 to 255'):
            wrapped([image])
    with pytest.raises(ConfigError, match="channels='grb' is unknown"):
        MaiteAttack(model, channels='grb')
    assert mmrobust  # which makes mmcv's operators
