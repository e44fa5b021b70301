"""Average precision of one class while single images change their attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import area, area_slope, recall_gains, split_events
from .matching import MatchTable


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """The detections of all attacks, in one ranking.

    Whatever attack an image gets, its detections keep their place among those of the
    other images, so places are given once. They fall with the score; equal scores
    stand in the order of the images, as in pycocotools.

    Attributes:
        key: (D,) attack * I + image, rising.
        label: (D,) class.
        rank: (D,) place in the ranking, each once.
        hit: (T, D) bool.
        ignored: (T, D) bool.
        num_keys: A * I.
        num_images: I.
    """

    key: np.ndarray
    label: np.ndarray
    rank: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    num_keys: int
    num_images: int


def rank_detections(tables: Sequence[MatchTable]) -> RankedDetections:
    """Ranks the detections of all attacks together."""
    num_images = tables[0].num_images
    image = np.concatenate([table.image for table in tables])
    score = np.concatenate([table.score for table in tables])
    attack = np.repeat(np.arange(len(tables)), [len(table.image) for table in tables])
    rank = np.empty(len(image), dtype=np.int64)
    # lexsort is stable: within an image the table's order decides between equals.
    rank[np.lexsort((image, -score))] = np.arange(len(image))
    return RankedDetections(
        key=attack * num_images + image,
        label=np.concatenate([table.label for table in tables]),
        rank=rank,
        hit=np.concatenate([table.hit for table in tables], axis=1),
        ignored=np.concatenate([table.ignored for table in tables], axis=1),
        num_keys=len(tables) * num_images,
        num_images=num_images,
    )


class ClassPool:
    """One class under the current assignment.

    Args:
        ranked: the detections of all attacks.
        label: the class.
        num_objects: its objects in the dataset, at least 1.
        assignment: (I,) the attack on each image.

    Attributes:
        ap: average precision of the class, mean over the IoU thresholds.

    A trial costs time in proportion to the class's events (see
    ``average_precision``), about its number of objects, whatever the number of
    detections. Most images change only everywhere-errors of a class: then a bound is
    had for next to nothing.
    """

    def __init__(
        self,
        ranked: RankedDetections,
        label: int,
        num_objects: int,
        assignment: np.ndarray,
    ) -> None:
        self._objects = num_objects
        self._images = ranked.num_images
        place = np.flatnonzero(ranked.label == label)
        key, rank = ranked.key[place], ranked.rank[place]
        hit, ignored = ranked.hit[:, place], ranked.ignored[:, place]
        event, error = split_events(hit, ignored)
        bounds = np.arange(ranked.num_keys + 1)
        # In the order of the keys, and in each of the ranks, so that an image under
        # an attack is a slice.
        order = np.lexsort((rank[event], key[event]))
        self._rank = rank[event][order]
        self._hit = hit[:, event][:, order]
        self._error = ~(hit | ignored)[:, event][:, order]
        self._start = np.searchsorted(key[event][order], bounds)
        order = np.lexsort((rank[error], key[error]))
        self._error_rank = rank[error][order]
        self._error_start = np.searchsorted(key[error][order], bounds)
        # The current state: events and everywhere-errors of the assigned attacks.
        keys = assignment * ranked.num_images + np.arange(ranked.num_images)
        self._now = self._gather(self._start, keys)
        self._now = self._now[np.argsort(self._rank[self._now])]
        self._now_errors = np.sort(
            self._error_rank[self._gather(self._error_start, keys)]
        )
        self._refresh()

    def after(self, image: int, now: int, attack: int) -> float:
        """Average precision if the image changed from one attack to another."""
        out, into = self._slices(self._start, image, now, attack)
        errors_out, errors_in = self._errors(image, now, attack)
        if out.start == out.stop and into.start == into.stop:
            more = _before(errors_in, self._ranks) - _before(errors_out, self._ranks)
            if not more.any():
                return self.ap
            return area(self._hits, self._misses + more, self._gains)
        events = self._replaced(out, into)
        ranks = self._rank[events]
        errors = _before(self._now_errors, ranks)
        errors += _before(errors_in, ranks) - _before(errors_out, ranks)
        hits = np.cumsum(self._hit[:, events], axis=1)
        misses = np.cumsum(self._error[:, events], axis=1) + errors
        return area(hits, misses, recall_gains(hits, self._objects))

    def least_change(self, image: int, now: int, attack: int) -> float:
        """A number that the change of the average precision is not below.

        It is the change itself where the image's events of the class change.
        """
        out, into = self._slices(self._start, image, now, attack)
        if out.start != out.stop or into.start != into.stop:
            return self.after(image, now, attack) - self.ap
        errors_out, errors_in = self._errors(image, now, attack)
        change = 0.0
        if len(errors_in):
            change += float(self._slope[self._ranks.searchsorted(errors_in)].sum())
        if len(errors_out):
            change -= float(self._slope[self._ranks.searchsorted(errors_out)].sum())
        return change

    def switch(self, image: int, now: int, attack: int) -> None:
        """Changes the image from one attack to another."""
        out, into = self._slices(self._start, image, now, attack)
        self._now = self._replaced(out, into)
        errors_out, errors_in = self._errors(image, now, attack)
        errors = np.delete(
            self._now_errors, np.searchsorted(self._now_errors, errors_out)
        )
        self._now_errors = np.insert(
            errors, np.searchsorted(errors, errors_in), errors_in
        )
        self._refresh()

    def _refresh(self) -> None:
        events = self._now
        self._ranks = self._rank[events]
        self._hits = np.cumsum(self._hit[:, events], axis=1)
        self._misses = np.cumsum(self._error[:, events], axis=1)
        self._misses += _before(self._now_errors, self._ranks)
        self._gains = recall_gains(self._hits, self._objects)
        self.ap = area(self._hits, self._misses, self._gains)
        self._slope = area_slope(self._hits, self._misses, self._gains)

    def _replaced(self, out: slice, into: slice) -> np.ndarray:
        """The current events without some and with others, in the ranking."""
        places = np.searchsorted(self._ranks, self._rank[out])
        events = np.concatenate(
            [np.delete(self._now, places), np.arange(into.start, into.stop)]
        )
        return events[np.argsort(self._rank[events])]

    def _errors(self, image: int, now: int, attack: int) -> list[np.ndarray]:
        slices = self._slices(self._error_start, image, now, attack)
        return [self._error_rank[each] for each in slices]

    def _slices(self, start: np.ndarray, image: int, *attacks: int) -> list[slice]:
        keys = [attack * self._images + image for attack in attacks]
        return [slice(int(start[key]), int(start[key + 1])) for key in keys]

    @staticmethod
    def _gather(start: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return np.concatenate([np.arange(start[k], start[k + 1]) for k in keys])


def _before(ranks: np.ndarray, events: np.ndarray) -> np.ndarray:
    """How many of the sorted ranks stand before each event."""
    return np.searchsorted(ranks, events)
