"""What is counted of a training's memory, against closed forms."""

import tiny
import torch
from mmengine.config import Config, ConfigDict

from benchmarks import scale


def test_memory_that_is_held():
    """Views and changes in place take none; what is let go of is taken off."""
    with scale.Held() as memory:
        one = torch.zeros(1000)
        view = one.view(10, 100).add_(1)
        assert (memory.held, memory.peak) == (4000, 4000)
        two = view * 2
        del two
        assert (memory.held, memory.peak) == (4000, 8000)
        del view, one
    assert (memory.held, memory.peak) == (0, 8000)


class Chain(torch.nn.Module):
    """Convolutions of one size, whose inputs are all that is kept."""

    def __init__(self, length):
        super().__init__()
        self.parts = torch.nn.ModuleList(Block() for _ in range(length))

    def extract_feat(self, images):
        for part in self.parts:
            images = part(images)
        return [images]


class Block(torch.nn.Module):
    """Keeps the results of two of its three steps."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, images):
        return self.conv(images).exp().exp()


def test_what_passes_take():
    count = 2 * 3 * 16 * 16 * 4  # bytes of the images
    plain = scale.measure(Chain(5), (16, 16), 2, False)
    again = scale.measure(Chain(5), (16, 16), 2, False, ['Block'])
    # Two results of exp in each block; the image itself was there before.
    assert plain.kept == 10 * count
    assert again.kept == 5 * count
    assert plain.peak > plain.kept
    assert again.kept < again.peak <= plain.peak


def test_an_estimate(monkeypatch):
    """States of whole weights, or of a part of them and what is gathered."""

    def passes(*given):
        return scale.Passes(100, 200 if given[-1] is False else 300)

    monkeypatch.setattr(scale, 'measure', passes)
    model = tiny.faster_rcnn()
    cfg = Config(dict(model=model, optim_wrapper=dict(type='OptimWrapper')))
    found = scale.estimate(cfg, (64, 64), 1, 8)
    count = sum(w.numel() for w in scale.build(ConfigDict(model)).parameters())
    assert (found['parameters'], found['learning']) == (count, count)
    assert (found['states'], found['gathered']) == (16 * count, 4 * count)
    assert (found['update'], found['attack']) == (20 * count + 300, 20 * count + 200)
    cfg.strategy = dict(blocks=['BasicBlock'])
    shared = scale.estimate(cfg, (64, 64), 1, 8)
    assert shared['blocks'] == 8
    assert shared['states'] == 16 * count // 8
    assert shared['attack'] == shared['states'] + 4 * count + 200
    assert shared['update'] == shared['states'] + shared['gathered'] + 300
