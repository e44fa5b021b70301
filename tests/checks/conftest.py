"""Detectors that detect, trained once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope

sys.path.insert(0, str(Path(__file__).parent))
from defective import Trained


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """Trains by family, each once."""
    known: dict[str, Trained] = {}

    def get(family: str = 'fcos') -> Trained:
        if family not in known:
            torch.manual_seed(0)
            root = tmp_path_factory.mktemp(family)
            known[family] = Trained(root, family, {'fcos': 60}.get(family, 70))
        return known[family]

    torch.set_num_threads(1)
    with DefaultScope.overwrite_default_scope('mmdet'):
        init_default_scope('mmdet')
        yield get
