"""What a step of an attack costs above the passes of the network.

Counted in operations and not in seconds, so that any machine gives the same answer.
"""

from collections import Counter

import pytest
import tiny
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch.utils._python_dispatch import TorchDispatchMode

from mmrobust.attacks import APGD, PGD
from mmrobust.checks import WatchedOracle
from mmrobust.objective import LossOracle, Objective, loss_mode
from mmrobust.utils.seeding import attack_generator
from benchmarks.synthetic import Drawing

# The host waits for the device where it asks for a number, or for a shape that
# depends on numbers.
WAITS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'is_nonzero')
COPIES = ('clone', 'copy_', '_to_copy', 'copy')


class Counts(TorchDispatchMode):
    """Counts the operations that torch makes inside the context."""

    def __init__(self, large):
        super().__init__()
        self.large = large
        self.all = self.waits = self.copies = self.large_copies = self.weight_grads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        self.all += not func.is_view
        # Indexing with flags looks for those that are set.
        flags = name == 'index' and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        self.waits += name in WAITS or flags
        if name in COPIES:
            self.copies += 1
            self.large_copies += result.numel() >= self.large
        if name == 'convolution_backward':
            self.weight_grads += any(args[-1][1:])
        return result

    def __sub__(self, other):
        names = ('all', 'waits', 'copies', 'large_copies', 'weight_grads')
        return Counter({k: getattr(self, k) - getattr(other, k) for k in names})


class Case:
    """A model in loss mode and an image."""

    def __init__(self, family):
        torch.manual_seed(0)
        config = ConfigDict(tiny.FAMILIES[family]())
        self.model = tiny.filled(MODELS.build(config))
        drawing = Drawing(96, 128, len(tiny.CLASSES), seed=1)
        self.samples = [drawing.sample()]
        self.batch = {'inputs': [drawing.image], 'data_samples': self.samples}
        self.images = [drawing.image.float()]
        data = {'inputs': self.images, 'data_samples': self.samples}
        self.data = self.model.data_preprocessor(data, False)

    def count(self, work):
        with Counts(self.images[0].numel()) as counts, torch.random.fork_rng():
            torch.manual_seed(0)
            work()
        return counts

    def bare(self):
        """A forward and an input-only backward pass, with nothing around it."""
        leaf = self.data['inputs'].detach().requires_grad_()
        losses = self.model(leaf, self.data['data_samples'], mode='loss')
        torch.autograd.grad(self.model.parse_losses(losses)[0], leaf)

    def steps(self, kind, number, **settings):
        # With no room to move every step is at the same point, as the bare passes are.
        attack = kind(eps=0, num_steps=number, **settings)
        oracle = LossOracle(self.model, self.batch, self.samples, Objective())
        attack.perturb(WatchedOracle(oracle), self.images, attack_generator(0))


@pytest.mark.parametrize('kind', [PGD, APGD])
@pytest.mark.parametrize('family', ['fcos', 'dab_detr'])
def test_a_step_adds_a_few_operations_to_the_bare_passes(family, kind):
    case = Case(family)
    with loss_mode(case.model):
        one = case.count(case.bare)
        # Both numbers of steps before APGD's first look back.
        more = case.count(lambda: case.steps(kind, 4 if kind is PGD else 3))
        less = case.count(lambda: case.steps(kind, 2))
    steps = 2 if kind is PGD else 1
    above = more - less
    for name in above:
        above[name] -= steps * getattr(one, name)
    assert above['waits'] <= 0
    assert above['copies'] <= steps  # of the values, one number per image
    assert above['large_copies'] <= 0
    assert above['all'] <= steps * (25 if kind is PGD else 50)
    assert one.weight_grads == more.weight_grads == 0
    assert one.all > 500  # or nothing was counted
    assert all(weight.grad is None for weight in case.model.parameters())


def test_random_samplers_wait_no_more_than_they_do_by_themselves():
    case = Case('faster_rcnn')
    with loss_mode(case.model):
        one = case.count(case.bare)
        oracle = LossOracle(case.model, case.batch, case.samples, Objective())
        oracle.value_and_grad(case.images)
        own = case.count(lambda: oracle.value_and_grad(case.images))
    above = own - one
    assert above['waits'] <= 0
    assert above['copies'] <= 0
    assert above['all'] <= 12
    assert own.weight_grads == 0


def test_weight_gradients_would_be_seen():
    case = Case('fcos')
    model = case.model.eval()

    def with_weights():
        losses = model(**case.data, mode='loss')
        model.parse_losses(losses)[0].backward()

    assert case.count(with_weights).weight_grads > 10


def test_watching_costs_two_operations_per_call():
    values, grads = torch.ones(1), [torch.ones(3, 8, 8)]

    class Still:
        def value(self, images):
            return values

        def value_and_grad(self, images):
            return values, grads

    watched = WatchedOracle(Still())
    with Counts(large=100) as counts:
        watched.value_and_grad(grads)
    assert counts.all <= 2
