"""The examples in docstrings run."""

import doctest

import mmrobust
import stored
import tiny
from mmengine.config import Config


class LastWords(doctest.OutputChecker):
    """Compares the end of an output: pycocotools prints what it does."""

    def check_output(self, want, got, flags):
        return not want or got.endswith(want)


def test_examples(coco, trained, tmp_path, monkeypatch):
    cfg = Config(tiny.runner_config(coco, tmp_path, tiny.fcos()))
    model = stored.detector('fcos')
    model.cfg = cfg
    monkeypatch.setattr('mmdet.apis.init_detector', lambda *_, **__: model)
    reader = dict(
        config=cfg,
        checkpoint=trained,
        picture=str(coco / 'images' / '000.png'),
        work_dir=tmp_path / 'work',
        report_path=tmp_path / 'work' / 'robustness.json',
    )
    names = [name for name in mmrobust.__all__ if name != '__version__']
    # The defence comes last, as it stays in front of the detector.
    for name in sorted(names, key='Defended'.__eq__):
        function = getattr(mmrobust, name)
        finder = doctest.DocTestFinder(recurse=False)
        (example,) = finder.find(function, name, globs=dict(reader))
        assert example.examples
        assert doctest.DocTestRunner(LastWords()).run(example).failed == 0
