"""mmpretrain beside versions of transformers that it knows, and that it does not."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mmrobust.compat import leave_out_multimodal
from mmrobust.compat.multimodal import NEEDED


@pytest.mark.parametrize(
    ('there', 'needed', 'left'),
    [(True, NEEDED, True), (True, NEEDED[:1], False), (False, NEEDED, False)],
)
def test_its_models_of_texts_need_what_they_import(monkeypatch, there, needed, left):
    dependency = SimpleNamespace(WITH_MULTIMODAL=there)
    transformers = SimpleNamespace(**dict.fromkeys(needed))
    monkeypatch.setitem(sys.modules, 'mmpretrain.utils.dependency', dependency)
    monkeypatch.setitem(sys.modules, 'transformers', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'transformers.modeling_utils', transformers)
    leave_out_multimodal()
    assert dependency.WITH_MULTIMODAL is left


def test_detectors_are_there_beside_a_newer_transformers(tmp_path):
    """Of which neither the names nor even its own requirements are there."""
    package = tmp_path / 'transformers'
    package.mkdir()
    (package / '__init__.py').write_text('import a_requirement_that_is_not_there')
    about = tmp_path / 'transformers-99.0.dist-info'
    about.mkdir()
    (about / 'METADATA').write_text('Name: transformers\nVersion: 99.0\n')
    code = 'import mmrobust\nfrom mmdet.models import FCOS\nprint(FCOS.__name__)'
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == 'FCOS\n', done.stderr
