"""Follows detectors that are told their classes by text, and scores its tokens.

GLIP and Grounding DINO give every prediction a logit for each token of a prompt. The
score of a class is the mean over its tokens of their sigmoids, by which mmdet ranks
predictions; here the same is read where losses are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..utils.models import replaced

# Metainfo of a sample that has some of its classes: the first one, and of how many.
_PLACE = 'place_of_text'
# The logit of a class that a pass was not asked for.
_UNASKED = -69.0


def reads_text(model: nn.Module) -> bool:
    """Returns whether the bare detector is told its classes by its images' text."""
    return hasattr(model, 'language_model') and hasattr(model, 'get_positive_map')


def class_tokens(model: Any, sample: Any) -> Tensor:
    """Returns which tokens of the prompt of a sample belong to which class.

    Args:
        model: a detector that reads text.
        sample: with ``text``, the names of classes or a sentence of them; of a sentence
            perhaps with ``tokens_positive``, the places of each label's characters.

    Returns:
        A mask (num_classes, the most tokens that the head knows).

    Raises:
        ConfigError: if a class has no token, since the prompt is cut off before it.
    """
    places, names = sample.get('tokens_positive', None), None
    if places is None:
        tokens, _, places, names = model.get_tokens_and_prompts(sample.text, True)
    else:
        tokens = model.language_model.tokenizer([sample.text], return_tensors='pt')
    mask: Tensor = model.get_positive_map(tokens, places)[1] > 0
    most = min(mask.shape[1], model.language_model.max_tokens)
    mask[:, most:] = False
    lost = (~mask.any(1)).nonzero().flatten().tolist()
    if lost:
        which = f'label {lost[0]}' if names is None else repr(names[lost[0]])
        raise ConfigError(
            f'{type(model).__name__} reads {most} tokens of a prompt, in which {which} '
            f'has none ({len(mask)} classes): set model.test_cfg.chunked_size, for '
            'instance to 40 classes at a time.'
        )
    return mask


def count_of_text(model: Any, samples: Sequence[Any]) -> int:
    """Returns the number of classes in the text of samples.

    Raises:
        ConfigError: if the samples do not agree on one.
    """
    counts = {
        len(sample.text)
        if isinstance(sample.text, (list, tuple))
        else len(class_tokens(model, sample))
        for sample in samples
    }
    if len(counts) != 1:
        raise ConfigError(
            'class weights and objectives that change labels need images with the same '
            f'classes in their text, and a batch has texts of {sorted(counts)}.'
        )
    return counts.pop()


def class_logits(tokens: Tensor, classes: Tensor) -> Tensor:
    """Returns the logits (M, num_classes) of the mean sigmoid of each class's tokens.

    Args:
        tokens: logits (M, tokens).
        classes: a mask (num_classes, tokens).
    """
    own = classes.to(tokens).T
    # Sums of positive terms alone, so that no small chance is lost.
    yes, no = tokens.sigmoid() @ own, (-tokens).sigmoid() @ own
    return yes.clamp(min=1e-30).log() - no.clamp(min=1e-30).log()


class TokenScores:
    """Sorts what a head gives its classification loss by images and classes.

    It hands over the tokens of all images in one row, without those of padding.

    Args:
        model: a detector that reads text.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        # Of each image: which tokens belong to which class, the first class, and how
        # many there are in all.
        self._texts: list[tuple[Tensor, int, int]] = []

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Notes, while the context lasts, of which samples losses are computed."""
        own = self.model.bbox_head.loss

        def loss(*args: Any, **kwargs: Any) -> Any:
            samples = kwargs.get('batch_data_samples') or args[-1]
            classes = [class_tokens(self.model, sample) for sample in samples]
            places = [
                sample.get(_PLACE, (0, len(each)))
                for sample, each in zip(samples, classes, strict=True)
            ]
            self._texts = [
                (c, *place) for c, place in zip(classes, places, strict=True)
            ]
            return own(*args, **kwargs)

        with replaced(self.model.bbox_head, 'loss', loss):
            yield

    def by_class(
        self, scores: Tensor, targets: Tensor, weights: Tensor | None
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns logits (M, num_classes), labels (M,) and weights (M,) of each image.

        Args:
            scores: logits of tokens (N,), as the head gives them its loss.
            targets: 1 for tokens of the class that a prediction stands for, else 0.
            weights: of the tokens.
        """
        weights = torch.ones_like(scores) if weights is None else weights
        found = []
        for part, classes, start, count in self._images(len(scores)):
            own = (targets[part].reshape(-1, classes.shape[1]) > 0).float()
            # A prediction stands for the class whose tokens are just its targets.
            shared, sizes = own @ classes.float().T, classes.sum(1)
            same = (shared == sizes) & (shared == own.sum(1, keepdim=True))
            labels = torch.where(same.any(1), same.int().argmax(1) + start, count)
            asked = class_logits(scores[part].reshape(own.shape), classes)
            logits = asked.new_full((len(asked), count), _UNASKED)
            logits[:, start : start + len(classes)] = asked
            found.append((logits, labels, weights[part].reshape(own.shape).amax(1)))
        return found

    def token_weights(self, weights: Tensor, size: int) -> Tensor:
        """Returns weights (N,) of tokens, 1 for those of no class.

        Args:
            weights: of classes, (num_classes,).
            size: how many tokens N the head gives its loss.
        """
        found = []
        for part, classes, start, count in self._images(size):
            if count != len(weights):
                raise ConfigError(
                    f'there are class weights for {len(weights)} classes, and the text '
                    f'of an image has {count}: use cls or reg.'
                )
            own = weights[start : start + len(classes)].to(classes.device)
            summed, times = own @ classes.float(), classes.sum(0)
            each = torch.where(times > 0, summed / times.clamp(min=1), 1.0)
            found.append(each.repeat((part.stop - part.start) // len(each)))
        return torch.cat(found)

    def _images(self, size: int) -> Iterator[tuple[slice, Tensor, int, int]]:
        """Yields where an image's tokens are, and its text, see ``_texts``."""
        masks = self.model.bbox_head.text_masks > 0
        rows, begin = size // max(int(masks.sum()), 1), 0
        for mask, (classes, start, count) in zip(masks, self._texts, strict=True):
            end = begin + rows * int(mask.sum())
            shown = classes.to(mask.device)[:, : len(mask)][:, mask]
            yield slice(begin, end), shown, start, count
            begin = end


@contextmanager
def prompted_as_deployed(model: Any) -> Iterator[None]:
    """Computes losses on the prompts of predictions, while the context lasts.

    Where ``test_cfg.chunked_size`` lets a prediction see some classes at a time, the
    loss is the sum of those of the same passes, each on the objects of its classes; and
    an image's ``caption_prompt`` describes classes as it does there.

    Args:
        model: the bare detector; one that reads no text is left alone.

    Raises:
        ConfigError: when asked on a prompt that is cut off, or has no loss.
    """
    if not reads_text(model):
        yield
        return
    with replaced(model, 'loss', partial(_loss, model, model.loss, set())):
        yield


def _loss(
    model: Any,
    own: Callable[..., dict[str, Any]],
    known: set[str],
    inputs: Tensor,
    samples: Sequence[Any],
) -> dict[str, Any]:
    names = samples[0].text
    size = (model.test_cfg or {}).get('chunked_size', -1)
    listed = isinstance(names, (list, tuple)) and 0 < size < len(names)
    with ExitStack() as stack:
        for sample in samples:
            prompt = sample.get('caption_prompt', None)
            # As mmdet's predictions: without chunks for custom entities only.
            used = size > 0 or samples[0].get('custom_entities', False)
            if prompt is not None and used:
                ask = partial(_described, model.get_tokens_and_prompts, prompt)
                stack.enter_context(replaced(model, 'get_tokens_and_prompts', ask))
                break  # it belongs to the dataset, not to the image
        if not listed or any(each.text != names for each in samples):
            for each in samples:
                asked = f'{each.text} {each.get("tokens_positive", None)}'
                if asked not in known:
                    _check(model, each)
                    known.add(asked)
            return own(inputs, samples)
        stack.enter_context(_extracting_once(model))
        parts = [
            own(inputs, [_chunk(each, start, size) for each in samples])
            for start in range(0, len(names), size)
        ]
    return {key: _total([part[key] for part in parts]) for key in parts[0]}


def _check(model: Any, sample: Any) -> None:
    from mmdet.models.detectors import GLIP  # not at the top: classifiers

    if sample.get('tokens_positive', None) == -1:
        raise ConfigError(
            'tokens_positive=-1 asks for whatever a sentence means, for which '
            f'{type(model).__name__} has no loss: give the places of its phrases.'
        )
    if 'tokens_positive' in sample and isinstance(model, GLIP):
        raise ConfigError(
            f"{type(model).__name__}'s loss reads no tokens_positive, but takes the "
            'parts of the text between its dots for its classes: give the text as a '
            'list of them, or use Grounding DINO.'
        )
    class_tokens(model, sample)


def _described(own: Callable[..., Any], prompt: Any, text: Any, entities: bool) -> Any:
    return own(text, entities, prompt)


@contextmanager
def _extracting_once(model: Any) -> Iterator[None]:
    """Lets all chunks share the features of the image."""
    own: Callable[..., Any] = model.extract_feat
    found: list[Any] = []

    def extract(inputs: Tensor) -> Any:
        if not found:
            found.append(own(inputs))
        return found[0]

    with replaced(model, 'extract_feat', extract):
        yield


def _chunk(sample: Any, start: int, size: int) -> Any:
    """Returns a sample that has some of its classes, and their objects only."""
    part, names = sample.new(), sample.text
    part.set_metainfo({'text': names[start : start + size]})
    part.set_metainfo({_PLACE: (start, len(names))})
    for key in ('gt_instances', 'ignored_instances'):
        labels = sample.get(key, {}).get('labels', None)
        if labels is not None:
            chosen = sample.get(key)[(labels >= start) & (labels < start + size)]
            chosen.labels = chosen.labels - start
            part.set_field(chosen, key)
    return part


def _total(values: Sequence[Any]) -> Any:
    if isinstance(values[0], (list, tuple)):
        return [_total(each) for each in zip(*values, strict=True)]
    return sum(values[1:], values[0])
