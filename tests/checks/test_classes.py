"""Class names of a checkpoint, a model, a dataset and its annotations."""

import json
from types import SimpleNamespace

import pytest
from mmdet.registry import DATASETS
from mmengine.evaluator import Evaluator
from mmrobust.checks import check_classes, check_has_boxes, check_metrics
from mmrobust.checks.metrics import figures_disagree, qualities_disagree
from mmrobust.errors import ConfigError
from torch import nn

CLASSES = ('cat', 'dog', 'bird')


class Data:
    """A dataset of one image without objects."""

    def __init__(self, classes, ann_file=''):
        self.metainfo = dict(classes=classes)
        self.ann_file = ann_file

    def __len__(self):
        return 1

    def get_data_info(self, index):
        return dict(img_id=index, instances=[])


def model(count=3):
    made = nn.Module()
    made.bbox_head = nn.Module()
    made.bbox_head.num_classes = count
    made.rpn_head = nn.Module()
    made.rpn_head.num_classes = 1
    return made


def coco_file(folder, names=CLASSES):
    path = folder / 'a.json'
    path.write_text(json.dumps(dict(categories=[dict(name=name) for name in names])))
    return str(path)


@pytest.mark.parametrize(
    ('classes', 'trained_on', 'count', 'message'),
    [
        (('dog', 'cat', 'bird'), CLASSES, 3, "order .* class 0 is 'dog' and was 'cat'"),
        (('cat',), CLASSES, 3, 'trained on 3 classes .* dataset has 1'),
        (('cat',), None, 3, 'model has 3 classes and the dataset has 1'),
        ('cat', None, 3, r"is a text, .* write classes=\('cat',\)"),
    ],
)
def test_labels_that_mean_something_else_are_refused(
    classes, trained_on, count, message
):
    with pytest.raises(ConfigError, match=message):
        check_classes(model(count), Data(classes), trained_on=trained_on)


def test_names_that_differ_are_told():
    (found,) = check_classes(model(), Data(('cat', 'hound', 'bird')), (), CLASSES)
    assert "class 1 is 'hound' and was 'dog' in training" in found
    # A detector of any number of classes, as those that read names as text.
    (found,) = check_classes(model(256), Data(('cat',)), (), CLASSES)
    assert found.endswith('do labels mean the same?')
    for trained_on in (CLASSES, list(CLASSES), None):
        assert check_classes(model(), Data(CLASSES), (), trained_on) == []
    texts = model(256)
    texts.language_model = nn.Module()
    assert check_classes(texts, Data(CLASSES)) == []


def test_a_misspelt_class_is_no_category(tmp_path):
    data = Data(('cat', 'dgo', 'bird'), coco_file(tmp_path))
    wrapped = SimpleNamespace(datasets=[data], metainfo=data.metainfo)
    for dataset in (data, wrapped):
        with pytest.raises(ConfigError, match=r"'dgo', .* \(did you mean 'dog'\?\)"):
            check_classes(model(), dataset)


def test_a_misspelt_class_of_voc_drops_its_objects(tmp_path):
    folder = tmp_path / 'Annotations'
    folder.mkdir()
    box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
    objects = ''.join(f'<object><name>{n}</name>{box}</object>' for n in ('cat', 'dog'))
    size = '<size><width>20</width><height>20</height></size>'
    (folder / '1.xml').write_text(f'<annotation>{size}{objects}</annotation>')
    (tmp_path / 'list.txt').write_text('1\n')

    def voc(*classes):
        return DATASETS.build(
            dict(
                type='XMLDataset', ann_file='list.txt', data_root=str(tmp_path),
                data_prefix=dict(sub_data_root=''), metainfo=dict(classes=classes),
                test_mode=True, pipeline=[],
            )
        )  # fmt: skip

    with pytest.raises(ConfigError, match=r"'dogg' of metainfo \(did you mean 'dog'"):
        check_classes(model(), voc('cat', 'dogg', 'bird'))
    assert check_classes(model(), voc('cat', 'dog', 'bird')) == []


def test_why_there_is_no_box(tmp_path):
    data = Data(('person', 'car'), coco_file(tmp_path))
    reason = r'metainfo names person, car, and .*a.json has the categories cat, dog'
    with pytest.raises(ConfigError, match=reason):
        check_has_boxes(data, 'attack')
    with pytest.raises(ConfigError, match='metainfo names no classes'):
        check_has_boxes(Data(()), 'attack')


def evaluator(**metric):
    return SimpleNamespace(metrics=[SimpleNamespace(**metric)])


def test_metrics_that_cannot_score_are_refused():
    with pytest.raises(ConfigError, match='format_only=True of SimpleNamespace'):
        check_metrics(evaluator(format_only=True), Data(CLASSES))
    other = SimpleNamespace(getImgIds=lambda: [5, 6])
    for chosen in (None, [0]):  # by num_images
        with pytest.raises(ConfigError, match=r'lacks 1 of the 1 images .* img_id 0'):
            check_metrics(evaluator(_coco_api=other, img_ids=chosen), Data(CLASSES))
    larger = SimpleNamespace(getImgIds=lambda: [0, 1, 2])
    (found,) = check_metrics(evaluator(_coco_api=larger), Data(CLASSES))
    assert 'has 3 images and the dataset 1 of them' in found
    assert check_metrics(evaluator(_coco_api=larger, img_ids=[0]), Data(CLASSES)) == []
    assert check_metrics(Evaluator([]), Data(CLASSES)) == []


def test_two_figures_of_the_same_boxes():
    boxes = dict(mAP=dict(estimate=0.41), mAP_50=0.687)
    voc = {'pascal_voc/mAP': 0.02, 'pascal_voc/AP50': 0.02}
    (found,) = figures_disagree(voc, boxes)
    assert found.startswith('pascal_voc/AP50 is 0.020, and the same boxes have 0.687')
    for near in ({'pascal_voc/AP50': 0.66}, {'coco/bbox_mAP': 0.4}, {}):
        assert figures_disagree(near, boxes) == []
    assert figures_disagree(voc, None) == []
    panoptic = dict(PQ=dict(estimate=40.0))
    assert qualities_disagree({'coco_panoptic/PQ': 40.05}, panoptic) == []
    assert qualities_disagree({'coco_panoptic/PQ': 40.05}, None) == []
    (found,) = qualities_disagree({'coco_panoptic/PQ': 39.5}, panoptic)
    assert found.startswith('coco_panoptic/PQ is 39.50, and the same segments')
