"""When the stand-in takes the place of ``mmcv._ext``, and what it does there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.utils.dl_utils.misc import mmcv_full_available

from mmrobust import compat
from mmrobust.compat.mmcv_ops import StandinExtension, repair_placeholders

compat.install()

import mmcv.ops

ROOT = Path(__file__).resolve().parents[2]


def run_python(code, *path):
    """Run ``code`` in a fresh interpreter that finds modules in ``path`` first."""
    parts = [*map(str, path), str(ROOT), os.environ.get('PYTHONPATH', '')]
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, parts))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_installed_once():
    before = sys.modules['mmcv._ext']
    assert compat.install_mmcv_ops() is compat.is_standin_active()
    assert sys.modules['mmcv._ext'] is before


@pytest.mark.skipif(
    not compat.is_standin_active(), reason='mmcv has its own compiled operators'
)
class TestStandin:
    """What holds where the installed mmcv has no compiled operators."""

    def test_looks_like_a_module_of_mmcv(self):
        extension = importlib.import_module('mmcv._ext')
        assert isinstance(extension, StandinExtension)
        assert importlib.util.find_spec('mmcv._ext').loader is not None
        assert mmcv_full_available()

    def test_special_attributes_are_not_operators(self):
        extension = sys.modules['mmcv._ext']
        assert not hasattr(extension, '__path__')
        assert not hasattr(extension, '__file__')
        with pytest.raises(AttributeError, match='__wrapped__'):
            extension.__wrapped__  # noqa: B018

    def test_uncovered_operator_raises_when_called(self):
        assert sys.modules['mmcv._ext'].box_iou_rotated.__name__ == 'box_iou_rotated'
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0]])
        with pytest.raises(RuntimeError) as caught:
            mmcv.ops.box_iou_rotated(boxes, boxes)
        message = str(caught.value)
        assert message.startswith("mmcv's operator 'box_iou_rotated' is not available")
        assert 'mmcv-lite' in message
        assert 'mim install mmcv' in message
        assert message.count('. ') == 0  # one sentence

    def test_reports_no_compiler(self):
        assert 'stand-in' in mmcv.ops.get_compiler_version()
        assert 'stand-in' in mmcv.ops.get_compiling_cuda_version()


@pytest.mark.parametrize('imported_first', [False, True])
def test_compiled_extension_is_left_alone(tmp_path, imported_first):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / '_ext.py').write_text("def nms():\n    return 'compiled'\n")
    out = run_python(
        f"""
import sys
if {imported_first}:
    import mmcv._ext
from mmrobust import compat
print(compat.install_mmcv_ops(), compat.is_standin_active())
import mmcv._ext
print(mmcv._ext.nms(), 'mmrobust.compat.kernels' in sys.modules)
""",
        tmp_path,
    )
    assert out.split() == ['False', 'False', 'compiled', 'False']


def test_mmcv_without_extension_is_not_imported(tmp_path):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    out = run_python(
        """
import sys
from mmrobust.compat import mmcv_ops
print(mmcv_ops.install(), 'mmcv' in sys.modules)
import mmcv._ext
from mmcv import _ext
print(mmcv_ops.is_standin_active(), _ext.nms.__module__)
""",
        tmp_path,
    )
    assert out.split() == ['True', 'False', 'True', 'mmrobust.compat.kernels.boxes']


def test_nothing_to_do_without_openmmlab():
    out = run_python(
        """
import sys
for name in ('mmcv', 'mmengine', 'mmdet', 'mmpretrain'):
    sys.modules[name] = None  # what makes an import fail
from mmrobust import compat
compat.install()
print(compat.install_mmcv_ops(), compat.allow_mmengine_checkpoints())
"""
    )
    assert out.split() == ['False', 'False']


def test_imports_before_ours_are_repaired():
    """A failed import of mmdet leaves modules behind whose operators only raise.

    Deformable DETR of mmdet takes its attention from ``mmcv.cnn``.
    """
    out = run_python(
        """
import sys
from contextlib import suppress
import mmcv.cnn
for name in ('mmdet.models', 'mmdet.structures'):
    with suppress(ImportError):
        __import__(name)
from mmrobust import compat
compat.install()
import mmcv.ops, mmdet.models
from mmcv.cnn.bricks.transformer import MultiScaleDeformableAttention as attention
from mmdet.models.detectors import deformable_detr
from mmdet.models.layers import bbox_nms
from mmdet.registry import MODELS
from mmdet.structures.mask import structures
print(attention is mmcv.ops.MultiScaleDeformableAttention)
print(deformable_detr.MultiScaleDeformableAttention is attention)
print(bbox_nms.batched_nms is mmcv.ops.batched_nms)
print(structures.roi_align is mmcv.ops.roi_align)
print(MODELS.get('SingleRoIExtractor') is not None)
for name, module in list(sys.modules.items()):
    for value in vars(module).values() if name.startswith('mmdet.') else ():
        function = vars(value).get('__init__') if isinstance(value, type) else value
        constants = getattr(getattr(function, '__code__', None), 'co_consts', ())
        for text in constants:
            assert 'compiled with ops' not in str(text), (name, value)
"""
    )
    assert out.split()[-5:] == ['True'] * 5


@pytest.fixture
def late_modules(tmp_path):
    """A module whose imports of operators failed, and one that re-exports them."""
    head = """
try:
    raise ImportError('as without operators')
    from mmcv.ops import nms, RoIAlign
    from mmcv.ops.nms import batched_nms as _batched
except ImportError:
    def nms(*args):
        raise RuntimeError('no nms')
    class RoIAlign:
        pass
    _batched = None

def soft_nms():
    return 'own'
"""
    tail = 'from mmdet.late_head import RoIAlign as Align, nms, soft_nms\n'
    modules = []
    for name, source in (('late_head', head), ('late_package', tail)):
        (tmp_path / f'{name}.py').write_text(source)
        spec = importlib.util.spec_from_file_location(
            f'mmdet.{name}', tmp_path / f'{name}.py'
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        modules.append(module)
    yield modules[0], modules[1]
    for module in modules:
        del sys.modules[module.__name__]


def test_placeholders_are_replaced(late_modules):
    head, package = late_modules
    assert repair_placeholders() == [
        'mmdet.late_head.RoIAlign',
        'mmdet.late_head._batched',
        'mmdet.late_head.nms',
        'mmdet.late_package.Align',
        'mmdet.late_package.nms',
    ]
    assert head.nms is package.nms is mmcv.ops.nms
    assert head.RoIAlign is package.Align is mmcv.ops.RoIAlign
    assert head._batched is mmcv.ops.batched_nms
    assert head.soft_nms() == package.soft_nms() == 'own'
    assert repair_placeholders() == []
