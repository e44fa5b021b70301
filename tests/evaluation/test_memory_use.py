"""What an evaluation holds does not grow with the pixels it has seen."""

import gc
import tracemalloc

import pytest
import tiny
from mmengine.hooks import Hook
from torch import Tensor, nn

IMAGES, SKIPPED = 7, 3
# mAP needs every detection of the benign pass and of the attack's. An image here takes
# 36 kB as bytes, 147 kB as floats.
PER_IMAGE = 25_000


class SeenEnough(Exception):
    """Ends an evaluation before its report, which takes longer than the images."""


class Scales(Hook):
    """Weighs what is held at the last image and was not at an early one."""

    def __init__(self):
        self.images = 0
        self.grown = 0

    def after_attack_iter(self, runner, batch_idx, **kwargs):
        kwargs.clear()
        self.images += 1
        if batch_idx == SKIPPED:
            self.grown = -_bytes_of_tensors()
            tracemalloc.start()  # of Python and numpy
        if batch_idx == IMAGES - 1:
            self.grown += _bytes_of_tensors()
            self.grown += tracemalloc.get_traced_memory()[0]
            raise SeenEnough


def _bytes_of_tensors():
    gc.collect()
    # Not what a compiler of another test has left, tensors without memory.
    kinds = (Tensor, nn.Parameter)
    tensors = [each for each in gc.get_objects() if type(each) in kinds]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.fixture
def scales():
    yield Scales()
    tracemalloc.stop()


@pytest.mark.parametrize('stage', ['test', 'val'])
def test_what_an_evaluation_holds_does_not_grow_with_the_pixels(
    build_runner, tmp_path, scales, stage
):
    """In a test records are on disk, in a validation in memory."""
    data = tiny.make_coco(tmp_path / 'data', IMAGES, sizes=[(96, 128)])
    model = tiny.fcos()
    model['test_cfg'].update(score_thr=0.0)  # 20 boxes on every image
    attacks = dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=1, keep_best=False))
    loop = f'mmrobust.Attack{stage.title()}Loop'
    evaluator = dict(type='CocoMetric', ann_file=str(data / 'annotations.json'))
    settings = {
        f'{stage}_cfg': dict(type=loop, attacks=attacks),
        f'{stage}_dataloader': tiny.loader(data, test=True),
        f'{stage}_evaluator': evaluator,
    }
    runner = build_runner(model, **settings)
    runner.register_hook(scales)
    with pytest.raises(SeenEnough):
        getattr(runner, stage)()
    assert scales.images == IMAGES
    per_image = scales.grown / (IMAGES - 1 - SKIPPED)
    assert 0 < per_image < PER_IMAGE
