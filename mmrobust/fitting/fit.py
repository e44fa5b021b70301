"""Fits one variable for all training images of one or several detectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from ..errors import ConfigError
from ..studies.attack_matrix import Detector
from ..studies.attack_transfer import run_test
from ..studies.study import say, settings_of
from ..universal import image_hashes
from ..utils.seeding import derive_seed
from ..utils.store import Store
from .ascent import Ascent
from .loop import FitLoop, opened_on, train_split
from .variables import Variable, normalised

# Seconds between two lines of progress, and between two states on disk.
_INTERVAL = 10.0


@dataclass(frozen=True)
class Plan:
    """The settings of a fit.

    Attributes:
        detectors: whose losses count alike; the training images are the first one's.
        make: makes what is fitted, of a height and width.
        objective: what is raised, see :class:`mmrobust.objective.Objective`.
        work_dir: folder of the result, and of the state that a fit goes on from.
        passes: over the training images.
        batch_size: images of a step.
        num_images: fit on a fixed choice of so many images; None for all.
        size: side of the square that is fitted, pixels; None for the longer side of
            the picture in the first image.
        seed: of the order of the images, their choice, and what the losses draw.
    """

    detectors: Sequence[Detector]
    make: Callable[[tuple[int, int]], Variable]
    objective: str
    work_dir: Path
    passes: int
    batch_size: int
    num_images: int | None = None
    size: int | None = None
    seed: int = 0

    def configs(self) -> list[Config]:
        """Returns the configs that open the detectors on the same images.

        Raises:
            ConfigError: if the first one has no training images.
        """
        images = train_split(self.detectors[0])
        # Of which the objective is all that counts.
        attack = {'type': 'mmrobust.PGD', 'objective': self.objective}
        return [
            opened_on(
                each,
                images,
                self.work_dir / f'detector{number}',
                attacks={'fit': attack},
                num_images=self.num_images,
                seed=self.seed,
            )
            for number, each in enumerate(self.detectors)
        ]


def fit_universal(plan: Plan) -> Path:
    """Fits what is not fitted yet, and writes it.

    An interrupted fit goes on from its last state, and ends as if it had not been.

    Returns:
        The PNG file, beside which a JSON file has the settings.

    Raises:
        ConfigError: before the first step for anything that can be known then.
    """
    found: list[Path] = []

    def opened(configs: Sequence[Config], loops: list[FitLoop]) -> None:
        if not configs:
            found.append(Fit(plan, loops).run())
            return
        first, *others = configs

        def go_on(loop: FitLoop) -> None:
            opened(others, [*loops, loop])

        run_test(first, lambda loop: setattr(loop, 'then', go_on))

    opened(plan.configs(), [])
    return found[0]


class Fit:
    """The steps of a fit, once its detectors are open."""

    def __init__(self, plan: Plan, loops: Sequence[FitLoop]) -> None:
        self.plan, self.loops = plan, loops
        dataset = loops[0].dataloader.dataset
        self.count = len(dataset)
        size = plan.size or max(max(loop.picture_size()) for loop in loops)
        self.variable = plan.make((size, size))
        for loop in loops:
            self.variable.check(*loop.first())
        self.settings: dict[str, Any] = {
            'kind': self.variable.kind,
            **self.variable.settings(),
            'objective': loops[0].attack.objective.name,
            'fitted_on': f'{_images_text(dataset)}, {self.count} images',
            'fitted_with': [
                f'{Path(each.config).name} with {Path(each.checkpoint).name}, '
                f'sha256 {each.sha256}'
                for each in plan.detectors
            ],
            'passes': plan.passes,
            'batch_size': plan.batch_size,
            'seed': plan.seed,
            'images': ' '.join(image_hashes(dataset)),
        }
        run = {**self.settings, 'size': size}
        run['detectors'] = [settings_of(each.cfg.to_dict()) for each in plan.detectors]
        self.state = Store(plan.work_dir / 'state', run, option='--work-dir').part(
            'ascent', None
        )
        self.per_pass = -(-self.count // plan.batch_size)
        num_steps = plan.passes * self.per_pass
        self.ascent = Ascent(
            self.variable.start(),
            self.variable.project,
            # The way of few steps, too, is twice as long as the ball's radius.
            step_size=self.variable.radius * min(1, max(1 / 8, 4 / num_steps)),
            num_steps=num_steps,
        )
        self.sums = [0.0] * plan.passes  # of the objective, by pass

    def run(self) -> Path:
        """Makes the steps that are left, and returns the file of the result."""
        for text in dict.fromkeys(text for loop in self.loops for text in loop.notes):
            say(f'Check: {text}')
        self._load()
        told = kept = time.monotonic()
        ascent = self.ascent
        while ascent.done < ascent.num_steps:
            self._step()
            now = time.monotonic()
            if now - kept > _INTERVAL:
                self._keep()
                kept = now
            if now - told > _INTERVAL or ascent.done % self.per_pass == 0:
                say(self._progress())
                told = now
        self._keep()
        if torch.equal(ascent.variable, self.variable.start()):
            raise ConfigError(
                'no gradient reaches the images, so that nothing could be fitted: try '
                'another objective.'
            )
        means = [total / self.count / len(self.loops) for total in self.sums]
        told_too = {'objective_by_pass': [float(f'{mean:.6g}') for mean in means]}
        path = self.plan.work_dir / f'{self.variable.kind}.png'
        self.variable.write(path, ascent.variable, {**self.settings, **told_too})
        return path

    def _step(self) -> None:
        ascent, size = self.ascent, self.plan.batch_size
        passed, place = divmod(ascent.done, self.per_pass)
        generator = np.random.default_rng(derive_seed(self.plan.seed, 'pass', passed))
        order = generator.permutation(self.count)
        direction = torch.zeros_like(ascent.variable)
        for loop in self.loops:
            total = torch.zeros_like(direction)
            for index in order[place * size : (place + 1) * size].tolist():
                value, grad = loop.gradient(
                    index, ascent.variable, self.variable.shown, ascent.done
                )
                total += grad.to(total)
                self.sums[passed] += value
            direction += normalised(total) / len(self.loops)
        ascent.step(direction - self.variable.held_back(ascent.variable))

    def _progress(self) -> str:
        done, (passed, _) = (
            self.ascent.done,
            divmod(self.ascent.done - 1, self.per_pass),
        )
        seen = min((done - passed * self.per_pass) * self.plan.batch_size, self.count)
        mean = self.sums[passed] / seen / len(self.loops)
        return (
            f'pass {passed + 1} of {self.plan.passes}, {seen} of {self.count} images: '
            f'mean objective {mean:.4g}'
        )

    def _keep(self) -> None:
        self.state.write(['state'], {**self.ascent.state_dict(), 'sums': self.sums})

    def _load(self) -> None:
        state = self.state.read(['state'])
        if state is None:
            return
        self.sums = list(state['sums'])
        self.ascent.load_state_dict(state)
        say(f'goes on after step {self.ascent.done} of {self.ascent.num_steps}')


def _images_text(dataset: Any) -> str:
    """Names the images as a file to be given away should: without whole paths."""
    path = getattr(dataset, 'ann_file', '') or type(dataset).__name__
    return '/'.join(Path(path).parts[-2:])
