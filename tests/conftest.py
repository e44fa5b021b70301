"""Fixtures shared by all tests.

Which import torch and mmdet themselves: of several processes, the one that only hands
out tests need not wait for them.
"""

import os
import sys
import uuid
from pathlib import Path

import pytest

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)

sys.path.insert(0, str(Path(__file__).parent))

# Trainings that are equal to the last bit are asserted, which a GPU's are not.
os.environ['CUDA_VISIBLE_DEVICES'] = ''


def pytest_addoption(parser):
    """Here, as the conftest.py of tests/fuzz may be read too late for options."""
    group = parser.getgroup('fuzz')
    group.addoption('--fuzz-cases', type=int, help='cases of tests/fuzz')
    group.addoption('--fuzz-seed', type=int, default=0, help='their seed')


@pytest.fixture(autouse=True)
def _quiet_and_repeatable():
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope, init_default_scope

    threads = torch.get_num_threads()
    # Threads wait for each other longer than these tiny detectors compute.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for logger in MMLogger._instance_dict.values():
        # Of a run of another test, whose log file has been closed.
        closed = [h for h in logger.handlers if getattr(h, 'stream', h) is None]
        for handler in closed:
            logger.removeHandler(handler)
    with DefaultScope.overwrite_default_scope('mmdet'):
        init_default_scope('mmdet')
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session', autouse=True)
def _quick_surroundings():
    import quick

    with pytest.MonkeyPatch.context() as patch:
        quick.shorten(patch)
        yield


@pytest.fixture(scope='session')
def coco(tmp_path_factory):
    """A tiny COCO dataset of six images, the last one without objects."""
    import tiny

    return tiny.make_coco(tmp_path_factory.mktemp('coco'))


@pytest.fixture(scope='session')
def project(tmp_path_factory):
    """A folder with configs, data and checkpoints for the tools."""
    import projects
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        return projects.build(tmp_path_factory.mktemp('project'))


@pytest.fixture
def build_runner(coco, tmp_path):
    """Builds a Runner on the tiny dataset; keyword arguments override the config."""
    import tiny
    from mmengine.config import Config
    from mmengine.runner import Runner

    def build(model=None, **overrides):
        cfg = tiny.runner_config(
            coco, tmp_path / 'work', model or tiny.fcos(), **overrides
        )
        # Runners of one name would share a message hub.
        cfg['experiment_name'] = f'test_{uuid.uuid4().hex}'
        return Runner.from_cfg(Config(cfg))

    return build


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """Checkpoint of an FCOS that knows the tiny dataset by heart."""
    import stored

    return stored.checkpoint('fcos', tmp_path_factory.mktemp('trained'))


@pytest.fixture
def evaluate(build_runner, trained, tmp_path, monkeypatch):
    """Tests the trained detector with attacks; other test files have their own."""
    from evaluated import Evaluation
    from mmengine.config import Config

    # Without yapf, which takes longer than a tiny evaluation.
    monkeypatch.setattr(Config, 'pretty_text', property(str))
    return Evaluation(build_runner, trained, tmp_path)
