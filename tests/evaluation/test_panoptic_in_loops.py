"""Panoptic quality, from the predictions to the report and an ensemble's choice."""

from __future__ import annotations

import json

import cv2
import mmrobust
import numpy as np
import pytest
import tiny
import torch
from mmdet.models.detectors import FCOS
from mmdet.registry import METRICS, MODELS
from mmengine.evaluator import BaseMetric
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from mmrobust.api.requirements import Requirement, check
from mmrobust.checks import scores_image_by_image
from mmrobust.errors import ConfigError
from mmrobust.evaluation.box_analysis import measured_types
from mmrobust.evaluation.pass_tables import PassTables
from mmrobust.evaluation.segments import paint_segments
from panoptic_data import STUFF, THINGS, make_panoptic


@MODELS.register_module(force=True)
class Panoptic(FCOS):
    """Its surest boxes are segments, before a wall and a floor."""

    def predict(self, *args, **kwargs):
        """See :meth:`FCOS.predict`."""
        outputs = super().predict(*args, **kwargs)
        for output in outputs:
            found = output.pred_instances
            height, width = output.ori_shape[:2]
            ids = torch.full((1, height, width), len(THINGS))
            ids[:, height // 2 :] += 1
            # Void, where nothing is said.
            ids[:, :2] = len(THINGS + STUFF)
            sure = found[found.scores > 0.3]
            rows = zip(sure.bboxes.round().int().tolist(), sure.labels, strict=True)
            for number, ((x1, y1, x2, y2), label) in enumerate(rows, 1):
                area = ids[:, max(y1, 0) : y2, max(x1, 0) : x2]
                area[area < 1000] = int(label) + 1000 * number
            del output.pred_instances
            output.pred_panoptic_seg = PixelData(sem_seg=ids)
        return outputs


@METRICS.register_module(name='MaskByMask', force=True)
class CocoPanopticMetric(BaseMetric):
    """In place of mmdet's, which needs a package that is on no index: mask by mask.

    As that one does it puts 0 for void into the prediction.
    """

    default_prefix = 'coco_panoptic'

    def __init__(self, root, **kwargs):
        super().__init__(**kwargs)
        content = json.loads((root / 'panoptic.json').read_text())
        self.truths = {}
        for each in content['annotations']:
            png = cv2.imread(str(root / 'panoptic' / each['file_name']))
            ids = png[..., ::-1].astype(int) @ [1, 256, 65536]
            masks = [
                (segment['category_id'] - 1, ids == segment['id'])
                for segment in each['segments_info']
            ]
            self.truths[each['image_id']] = masks

    def process(self, data_batch, data_samples):
        """See the base class."""
        for sample in data_samples:
            ids = sample['pred_panoptic_seg']['sem_seg'].numpy()
            ids[ids == len(THINGS + STUFF)] = 0
            found = [(n % 1000, ids[0] == n) for n in np.unique(ids) if n]
            self.results.append((self.truths[sample['img_id']], found))

    def compute_metrics(self, results):
        """See the base class."""
        values = []
        for label in range(len(THINGS + STUFF)):
            ious, segments = 0.0, 0
            for both in results:
                true, found = ([m for k, m in each if k == label] for each in both)
                overlaps = [(a & b).sum() / (a | b).sum() for a in true for b in found]
                ious += sum(iou for iou in overlaps if iou > 0.5)
                segments += len(true) + len(found)
            values += [2 * ious / segments] if segments else []
        return dict(PQ=100 * float(np.mean(values)))


@METRICS.register_module(force=True)
class NumberOfImages(BaseMetric):
    """Reads nothing of predictions."""

    def process(self, data_batch, data_samples):
        """See the base class."""
        self.results += data_samples

    def compute_metrics(self, results):
        """See the base class."""
        return dict(images=len(results))


PGD = dict(type='mmrobust.PGD', eps=6, num_steps=1)
MEMBERS = dict(a=PGD, b={**PGD, 'objective': 'vanish'})
ATTACKS = dict(all=dict(type='mmrobust.Ensemble', eps=6, members=MEMBERS), a=PGD)


@pytest.fixture
def panoptic(coco, tmp_path):
    """Settings of a Runner with panoptic ground truth."""
    root = make_panoptic(coco, tmp_path / 'data')
    loader = tiny.loader(coco, test=True)
    classes = dict(classes=THINGS + STUFF, thing_classes=THINGS, stuff_classes=STUFF)
    loader['dataset'].update(
        type='CocoPanopticDataset',
        ann_file=str(root / 'panoptic.json'),
        data_prefix=dict(img='images/', seg=str(root / 'panoptic')),
        metainfo=classes,
    )
    return dict(
        test_dataloader=loader, test_evaluator=dict(type='MaskByMask', root=root)
    )


def figure(entry):
    return entry['panoptic']['PQ']['estimate']


def test_ensembles_choose_by_panoptic_quality(evaluate, panoptic, tmp_path):
    model = {**tiny.fcos(), 'type': 'Panoptic'}
    settings = dict(check_images=0, gallery=1, num_images=3)
    (tmp_path / 'r.npz').write_text('tables of an earlier run')
    report = evaluate(ATTACKS, None, model, panoptic, **settings)
    assert report['judged_by'] == 'panoptic'
    assert not (tmp_path / 'r.npz').exists()
    assert report['checks'] == []
    passes = [report['benign'], *report['attacks']]
    for each in passes:
        metric = each['metrics']['coco_panoptic/PQ']
        assert figure(each) == pytest.approx(metric, abs=1e-9)
        assert 'boxes' not in each
        found = each['panoptic']
        known = [value for value in found['classes'].values() if value is not None]
        assert np.mean(known) == pytest.approx(metric)
        low, high = (found['PQ'][key] for key in ('low', 'high'))
        assert low <= metric <= high
    benign, whole, member = passes
    assert figure(whole) <= figure(member) < figure(benign)
    assert whole['members'][0]['own_PQ'] == pytest.approx(figure(member))
    assert whole['members'][-1]['PQ'] >= figure(whole)
    fall = figure(benign) - figure(whole)
    assert whole['panoptic']['drop']['estimate'] == pytest.approx(fall)
    worst = report['worst_case']
    assert worst['PQ'] <= figure(whole)
    assert set(worst['images']) == {'benign', 'all', 'all/a', 'all/b', 'a'}
    # What reads reports reads it.
    read = mmrobust.load(tmp_path / 'r.json')
    assert read.figures_of('all') == (whole['metrics'], whole['panoptic'])
    left = f'all>={figure(whole) + 1}'
    (missed,) = check(read, [Requirement.read(left)])
    assert missed.startswith(f'all is {figure(whole):.4g}')
    text = (tmp_path / 'r.md').read_text()
    assert f'Of PQ {figure(benign):.2f}, ' in text
    assert 'choose, by PQ.' in text
    assert '## Panoptic segmentation' in text


def test_what_is_measured_is_known_by_the_metrics():
    class Coco:
        def __init__(self, *metrics):
            self.metrics = metrics

    panoptic = CocoPanopticMetric.__new__(CocoPanopticMetric)
    assert measured_types([panoptic]) == ['panoptic']
    both = [panoptic, Coco('bbox', 'segm')]
    assert measured_types(both) == ['bbox', 'segm', 'panoptic']
    assert measured_types([Coco('segm'), panoptic]) == ['segm', 'panoptic']
    assert measured_types([Coco(), panoptic]) == ['bbox', 'panoptic']
    # mmdet's has a temporary folder where it scores each image by itself.
    panoptic.seg_prefix, panoptic.tmp_dir = 'masks', None
    assert not scores_image_by_image(panoptic)
    panoptic.tmp_dir = 'somewhere'
    assert scores_image_by_image(panoptic)
    assert not scores_image_by_image(Coco('bbox'))


def test_what_has_no_panoptic_truth_or_prediction_is_named(evaluate, panoptic):
    with pytest.raises(ConfigError, match='the dataset has no panoptic ground truth'):
        evaluate(dict(a=PGD), judged_by='panoptic')
    attacks = dict(all=ATTACKS['all'])
    with pytest.raises(ConfigError, match='reads panoptic segmentations, and the mod'):
        evaluate(
            attacks,
            overrides={**panoptic, 'test_evaluator': dict(type='NumberOfImages')},
            judged_by='panoptic',
        )


def test_segments_are_painted_where_they_are_seen():
    ids = torch.zeros(1, 4, 6, dtype=torch.int32)
    ids[:, :3, :3] = 1000  # of class 0
    ids[:, 3:, 3:] = 3
    ids[:, 3:, :3] = 5  # void
    output = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=ids))
    output.set_metainfo(dict(scale_factor=(2.0, 2.0)))
    palette = [(200, 0, 0), (0, 0, 0), (0, 0, 0), (0, 100, 0), (0, 0, 0)]
    meta = dict(classes=THINGS + STUFF, palette=palette)
    grey = np.full((24, 36, 3), 100, np.uint8)  # three times the input's 8 x 12
    painted, found = paint_segments(grey, output, DetDataSample(), 3, meta)
    assert [row[1:] for row in found] == [('wall', 6 * 18), ('disc', 18 * 18)]
    assert painted[9, 9].tolist() == [150, 50, 50]
    assert painted[9, 17].tolist() == [200, 0, 0]
    assert painted[21, 30].tolist() == [50, 100, 50]
    for row, column in ((9, 18), (17, 30), (21, 9)):
        assert painted[row, column].tolist() == [100, 100, 100]
    assert (grey == 100).all()


def test_tables_of_an_earlier_run_do_not_stay(tmp_path):
    path = tmp_path / 'r.npz'
    path.write_text('tables of an earlier run')
    PassTables().write(path)
    assert not path.exists()
    PassTables().write(path)
