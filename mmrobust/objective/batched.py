"""Attacks several images in common passes of the network, each by its own loss.

:func:`find_seams` finds out, by trying, what a model allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import float_images
from ..utils.models import device_of, replaced
from ..utils.seeding import Draws, seeded
from .base import Objective
from .inputs import Inputs
from .oracle import LossOracle, gradients
from .seams import NotStackedError, Seams

# Of the outputs for a stack and their gradients, beside those of images alone: what
# sums in another order may change of their length.
_TOLERANCE = 0.02

# The same of losses, for which rounding may choose other proposals.
_LOSS_TOLERANCE = 0.05


class StackedOracle(LossOracle):
    """The losses of images of one input shape, which share the network's passes.

    Values and gradients are those of :class:`LossOracle`, image by image, up to
    rounding, and so are the random draws of the model's losses: every image has its
    own, which go on from call to call as if it were alone.

    Args:
        model, data_batch, samples, objective: see :class:`LossOracle`; the images make
            inputs of one shape.
        seams: of the model.
        seeds: of the draws of each image.
    """

    def __init__(
        self,
        model: Any,
        data_batch: dict,
        samples: Sequence[Any],
        objective: Objective,
        seams: Seams,
        seeds: Sequence[int],
    ) -> None:
        super().__init__(model, data_batch, samples, objective)
        self._seams = seams
        device = device_of(model)
        self._draws = [Draws(seed, device) for seed in seeds]

    def value(self, images: Sequence[Tensor]) -> Tensor:
        """See :meth:`LossOracle.value`."""
        with torch.no_grad():
            return torch.stack(self._all(images))

    def value_and_grad(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See :meth:`LossOracle.value_and_grad`."""
        with torch.enable_grad():
            leaves = [image.detach().requires_grad_() for image in images]
            values = torch.stack(self._all(leaves))
            # An image's loss depends on no other, so the sum has all gradients.
            grads = gradients(values.sum(), leaves)
        self.backwards += len(images)
        return values.detach(), grads

    def _all(self, images: Sequence[Tensor]) -> list[Tensor]:
        # Before anything is computed of what it writes to.
        self._memory.restore()
        ready = [self._data([i], [image]) for i, image in enumerate(images)]
        objectives = [self._objective([i]) for i in range(len(images))]
        found: list[dict[str, Any]] = []

        def each(place: int, image: Tensor, sample: Any, loss: Callable) -> None:
            self._memory.restore()
            targets = self._targets[(place,)]
            attached = objectives[place].attached(self.model, targets)
            with self._draws[place].going_on(), attached:
                found.append(loss(image, [sample]))

        inputs = torch.cat([data['inputs'] for data in ready])
        samples = [sample for data in ready for sample in data['data_samples']]
        self._seams.run(inputs, samples, each)
        self.forwards += len(images)
        rows = zip(objectives, found, strict=True)
        return [objective(losses) for objective, losses in rows]


def find_seams(model: Any, part: dict, samples: Sequence[Any]) -> Seams:
    """Finds out, by trying, which parts of a model keep the images of a stack apart.

    Use inside :func:`loss_mode`, with a batch of one image and its ground truth.

    Raises:
        NotStackedError: if there are none; the message says why, for the report.
    """
    try:
        with _without_tf32():
            return _find_seams(model, part, samples)
    except torch.cuda.OutOfMemoryError:
        raise  # another time there may be enough
    except Exception as error:  # of a model that is made otherwise
        raise NotStackedError(str(error).strip().split('\n')[0]) from error


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Computes convolutions on a GPU with all digits of float32.

    With three of them, which kernel takes a stack decides about proposals, and images
    that nothing connects seem to depend on each other.
    """
    cudnn: Any = torch.backends.cudnn
    new = hasattr(cudnn, 'conv')  # where the old name may not be read beside the new
    owner = cudnn.conv if new else cudnn
    name, exact = ('fp32_precision', 'ieee') if new else ('allow_tf32', False)
    before = getattr(owner, name)
    setattr(owner, name, exact)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _find_seams(model: Any, part: dict, samples: Sequence[Any]) -> Seams:
    prepare = Inputs(model, part)
    if not prepare.normalises_only:
        name = type(model.data_preprocessor).__name__
        raise NotStackedError(f'what {name} does is not known')
    (image,) = float_images(part, device_of(model))
    heads = _heads(model, prepare([image], samples))
    # As another image one that is nothing like it, in its mean above all.
    pair = [image, 255 - image]
    if heads:
        try:
            return _tried(Seams(model, heads), prepare, pair, samples)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:
            pass  # it may be the heads
    return _tried(Seams(model), prepare, pair, samples)


def _tried(
    seams: Seams, prepare: Inputs, pair: list[Tensor], samples: Sequence[Any]
) -> Seams:
    """The seams, if they hold."""
    singles = [_answers(seams, prepare, [each], samples)[0] for each in pair]
    _compare(_answers(seams, prepare, pair, samples), singles)
    twice = [*samples, *samples]
    batch = {**prepare.data_batch, 'inputs': pair, 'data_samples': twice}
    oracle = StackedOracle(seams.model, batch, twice, Objective(), seams, [0, 0])
    values, _ = oracle.value_and_grad(pair)
    # A head may keep something of its forward pass for its loss.
    for value, image in zip(values, pair, strict=True):
        single = {**batch, 'inputs': [image], 'data_samples': list(samples)}
        alone = LossOracle(seams.model, single, samples, Objective())
        with seeded(0, image.device):
            wanted = alone.value([image])
        if not (value - wanted).abs() <= _LOSS_TOLERANCE * wanted.abs():
            raise NotStackedError('the loss of an image depends on others')
    return seams


def _heads(model: Any, data: dict[str, Any]) -> list[str]:
    """Children that the model's loss gives the features and nothing else.

    Raises:
        NotStackedError: if the loss does not take its features from the whole input, at
            one go.
    """
    given: list[Tensor] = []
    made: list[Any] = []
    calls: dict[str, list[bool]] = {}
    own_loss, extract = model.loss, model.extract_feat

    def loss(inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(inputs)
        return own_loss(inputs, *args, **kwargs)

    def extract_feat(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or args[0] is not given[-1]:
            raise NotStackedError('it does not extract features of its input as it is')
        made.append(extract(*args))
        return made[-1]

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            only = len(args) == 1 and not kwargs and bool(made)
            calls.setdefault(name, []).append(only and args[0] is made[-1])

        return hook

    with ExitStack() as stack:
        stack.enter_context(replaced(model, 'loss', loss))
        stack.enter_context(replaced(model, 'extract_feat', extract_feat))
        for name, child in model.named_children():
            hook = child.register_forward_pre_hook(look(name), with_kwargs=True)
            stack.callback(hook.remove)
        with torch.no_grad(), seeded(0, data['inputs'].device):
            model(**data, mode='loss')
    if len(given) != 1 or len(made) != 1:
        raise NotStackedError('it does not extract features exactly once')
    return [name for name, seen in calls.items() if seen == [True]]


def _answers(
    seams: Seams, prepare: Inputs, images: Sequence[Tensor], samples: Sequence[Any]
) -> list[tuple[Tensor, Tensor]]:
    """What the parts give for images, as one vector each, and its gradient."""
    model, found = seams.model, []
    noise = torch.Generator().manual_seed(0)

    def each(place: int, image: Tensor, sample: Any, loss: Callable) -> None:
        features = model.extract_feat(image)
        outputs = [getattr(model, name)(features) for name in seams.heads]
        found.append([t.flatten().float() for t in _tensors([features, outputs])])

    with torch.enable_grad(), seeded(0, images[0].device):
        leaves = [image.detach().requires_grad_() for image in images]
        inputs = torch.cat([prepare.pixels([leaf]) for leaf in leaves])
        seams.run(inputs, list(samples) * len(images), each)
        sides = []
        for tensors in found:
            noise.manual_seed(0)
            draws = [torch.randn(len(t), generator=noise).to(t) for t in tensors]
            pairs = zip(tensors, draws, strict=True)
            # Each of them counts, however long it is.
            sides.append(
                sum((t * d).sum() / (1e-12 + t.detach().norm()) for t, d in pairs)
            )
        grads = gradients(sum(sides), leaves)
    return [
        (torch.cat([t.detach() / (1e-12 + t.detach().norm()) for t in tensors]), grad)
        for tensors, grad in zip(found, grads, strict=True)
    ]


def _compare(
    together: list[tuple[Tensor, Tensor]], alone: list[tuple[Tensor, Tensor]]
) -> None:
    for ours, theirs in zip(together, alone, strict=True):
        for found, wanted in zip(ours, theirs, strict=True):
            if not (found - wanted).norm() <= _TOLERANCE * wanted.norm():
                raise NotStackedError('what it gives for an image depends on others')


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for each in value:
            yield from _tensors(each)
