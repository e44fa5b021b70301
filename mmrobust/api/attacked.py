"""What became of attacked pictures: images, predictions and losses, to look at."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor

from ..errors import ConfigError
from ..evaluation import PNG, as_picture, attack_picture
from ..report import markdown_table

_COLUMNS = (
    *('image', 'objects', 'detections before', 'detections after'),
    *('loss before', 'loss after', 'perturbation', 'backward passes', 'seconds'),
)


@dataclass(frozen=True)
class AttackedImage:
    """A picture under attack.

    Attributes:
        name: path of the picture, or its place.
        clean: what was attacked, float (C, H, W) in 0-255, BGR: the picture, or with
            ``space='input'`` what the network gets of it.
        adversarial: the same under attack. Its values need not be whole numbers.
        truth: the objects that were attacked, ``gt_instances`` in the frame of the
            network's input.
        before: the model's prediction on the clean picture, in the picture's frame, as
            its pipeline shows it, which may round after resizing.
        after: that on the attacked one.
        loss_before: the attack's objective on the clean picture.
        loss_after: the same on the attacked one.
        distance: size of the perturbation in the attack's norm, in pixel units.
        forwards: forward passes of the network for the attack.
        backwards: backward passes.
        seconds: of attack and prediction.
        inputs: what the network gets, clean and attacked, (C, h, w) each.
    """

    name: str
    clean: Tensor
    adversarial: Tensor
    truth: BaseDataElement
    before: BaseDataElement
    after: BaseDataElement
    loss_before: float
    loss_after: float
    distance: float
    forwards: int
    backwards: int
    seconds: float
    inputs: tuple[Tensor, Tensor] = field(repr=False)

    @property
    def picture(self) -> np.ndarray:
        """The clean picture, uint8 (H, W, 3), BGR."""
        return as_picture(self.clean)

    @property
    def adversarial_picture(self) -> np.ndarray:
        """The attacked picture rounded to 8 bits, uint8 (H, W, 3), BGR.

        Rounding may take a little of the attack's strength: ``--quantize`` of
        ``tools/test.py`` measures how much.
        """
        return as_picture(self.adversarial)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the attacked picture, rounded to 8 bits, as a PNG file.

        Raises:
            ConfigError: for another ending, whose compression would change it.
        """
        if not os.fspath(path).endswith('.png'):
            raise ConfigError(f'{path} must be a .png file, which keeps every pixel.')
        if not cv2.imwrite(os.fspath(path), self.adversarial_picture):
            raise ConfigError(f'{path} cannot be written: does its folder exist?')

    def count(self, output: BaseDataElement, score_thr: float = 0.3) -> int:
        """Returns how many detections of a prediction have at least this score."""
        return int((output.pred_instances.scores >= score_thr).sum())


class AttackedImages(Sequence[AttackedImage]):
    """The results of :func:`mmrobust.attack`, one for each picture.

    Attributes:
        settings: of the attack.
        space: what was attacked: ``'original'`` pictures, or the network's ``'input'``.
        labels_from: in words, whose objects were attacked.
        notes: what should be known of the figures, in sentences.
    """

    def __init__(
        self,
        images: Sequence[AttackedImage],
        settings: Mapping[str, Any],
        space: str,
        labels_from: str,
        notes: Sequence[str],
        dataset_meta: Mapping[str, Any],
    ) -> None:
        self._images = list(images)
        self.settings = dict(settings)
        self.space = space
        self.labels_from = labels_from
        self.notes = list(notes)
        self._meta = dict(dataset_meta)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return self._images[index]

    def __iter__(self) -> Iterator[AttackedImage]:
        return iter(self._images)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row of figures for each picture."""
        values = [
            (
                *(each.name, len(each.truth.gt_instances)),
                *(each.count(each.before), each.count(each.after)),
                *(each.loss_before, each.loss_after, each.distance),
                *(each.backwards, each.seconds),
            )
            for each in self
        ]
        return [dict(zip(_COLUMNS, row, strict=True)) for row in values]

    def table(self) -> str:
        """Returns the figures as a Markdown table; detections are those from 0.3."""
        rows = [[_text(value) for value in row.values()] for row in self.rows()]
        return markdown_table(list(_COLUMNS), rows)

    def to_pandas(self) -> Any:
        """Returns the figures as a pandas ``DataFrame``.

        Raises:
            ConfigError: if pandas is not installed.
        """
        return data_frame(self.rows())

    def pictures(self, score_thr: float = 0.3) -> list[np.ndarray]:
        """Draws clean picture, attacked picture and their difference side by side.

        As the network gets them; ground truth dashed, detections in red.

        Args:
            score_thr: detections below it are not drawn.

        Returns:
            RGB pictures, uint8 (height, width, 3).
        """
        visualizer = Visualizer()
        visualizer.dataset_meta = self._meta
        name = str(self.settings.get('objective') or 'attack')
        return [
            attack_picture(
                *(visualizer, *each.inputs, each.before, each.after),
                *(each.truth, score_thr, name),
            )
            for each in self
        ]

    def plot(self, score_thr: float = 0.3) -> Any:
        """Draws :meth:`pictures` below each other, as a figure of matplotlib."""
        from matplotlib.figure import Figure

        drawn = self.pictures(score_thr)
        shapes = [(each.shape[0] / each.shape[1]) for each in drawn]
        figure = Figure(figsize=(12, 12 * sum(shapes) + 0.3 * len(drawn)))
        axes = figure.subplots(
            len(drawn), 1, squeeze=False, gridspec_kw={'height_ratios': shapes}
        )
        for axis, picture, each in zip(axes[:, 0], drawn, self, strict=True):
            axis.imshow(picture)
            axis.set_title(each.name, fontsize=9)
            axis.set_axis_off()
        figure.tight_layout()
        return figure

    def __repr__(self) -> str:
        return f'{self._summary()}\n{self.table()}'

    def _repr_html_(self) -> str:
        """Shows figures and pictures in a notebook."""
        cells = [
            ''.join(f'<td>{html.escape(_text(value))}</td>' for value in row.values())
            for row in self.rows()
        ]
        head = ''.join(f'<th>{each}</th>' for each in _COLUMNS)
        body = ''.join(f'<tr>{row}</tr>' for row in cells)
        drawn = ''.join(_image(picture) for picture in self.pictures())
        return (
            f'<p>{html.escape(self._summary())}</p><table><tr>{head}</tr>{body}</table>'
            f'{drawn}'
        )

    def _summary(self) -> str:
        settings = self.settings
        what = ', '.join(
            f'{key} {settings[key]}'
            for key in ('norm', 'eps', 'num_steps', 'objective')
            if settings.get(key) is not None
        )
        notes = ''.join(f' Note: {note}.' for note in self.notes)
        frame = 'the pictures' if self.space == 'original' else "the network's inputs"
        return (
            f'{len(self)} attacked ({what}; on {frame}; objects are '
            f'{self.labels_from}).{notes}'
        )


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Returns rows as a pandas ``DataFrame``.

    Raises:
        ConfigError: if pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError('to_pandas() needs pandas: pip install pandas.') from error
    return pandas.DataFrame(list(rows))


def _text(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _image(picture: np.ndarray) -> str:
    _, data = cv2.imencode('.png', picture[..., ::-1], PNG)
    text = base64.b64encode(data.tobytes()).decode()
    return f'<p><img style="max-width: 100%" src="data:image/png;base64,{text}"></p>'
