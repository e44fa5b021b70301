"""Detectors that detect, each loaded once."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope

sys.path.insert(0, str(Path(__file__).parent))
from defective import Examined


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """Detectors by family."""
    torch.set_num_threads(1)
    with DefaultScope.overwrite_default_scope('mmdet'):
        init_default_scope('mmdet')
        yield cache(lambda family: Examined(tmp_path_factory.mktemp(family), family))
