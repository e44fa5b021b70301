"""Runners of short trainings, for all tests of training."""

import pytest
import tiny
from mmengine.config import Config
from updates import NO_VALIDATION


@pytest.fixture
def build(build_runner, coco, monkeypatch):
    """Builds runners on three batches of two small images, without validation."""
    # Formatting the config takes longer than the few updates of a test.
    monkeypatch.setattr(Config, 'pretty_text', property(str))

    def make(model=None, **overrides):
        endless = 'IterBased' in overrides['train_cfg']['type']
        loader = tiny.loader(coco, test=False, batch_size=2, scale=(64, 48))
        kind = 'InfiniteSampler' if endless else 'DefaultSampler'
        loader['sampler'] = dict(type=kind, shuffle=True)
        settings = dict(
            train_dataloader=loader,
            log_processor=dict(by_epoch=not endless),
            **NO_VALIDATION,
        )
        return build_runner(model, **{**settings, **overrides})

    return make
