"""Progress of an evaluation with several passes."""

from __future__ import annotations

import datetime
import logging
import time


class Progress:
    """Logs how far the attacks are, at most every ``interval`` seconds.

    Args:
        names: the attacks in their order.
        batches: batches per pass.
        logger: where the lines go.
        interval: seconds between two lines.
    """

    def __init__(
        self,
        names: list[str],
        batches: int,
        logger: logging.Logger,
        interval: float = 10.0,
    ) -> None:
        self.names = names
        self.batches = batches
        self.logger = logger
        self.interval = interval
        self._number = 0
        self._started = self._logged = time.monotonic()

    def start(self, name: str) -> None:
        """Begins the pass of an attack."""
        self._number += 1
        self._name = name
        self._started = self._logged = time.monotonic()
        self.logger.info(f'Attack {self._number}/{len(self.names)}: {name}')

    def update(self, done: int) -> None:
        """Reports that ``done`` batches of the pass are finished."""
        now = time.monotonic()
        if now - self._logged < self.interval or done == self.batches:
            return
        self._logged = now
        left = (now - self._started) / done * (self.batches - done)
        eta = datetime.timedelta(seconds=round(left))
        self.logger.info(
            f'Attack {self._number}/{len(self.names)}: {self._name} '
            f'[{done}/{self.batches}]  eta of this attack: {eta}'
        )

    def finish(self) -> float:
        """Ends the pass and returns its seconds."""
        seconds = time.monotonic() - self._started
        self.logger.info(f'{self._name} took {seconds:.1f} s')
        return seconds
