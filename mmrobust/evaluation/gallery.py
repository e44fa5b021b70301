"""The report's pictures of attacked images, kept until the report is complete."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mmcv
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..batch import attack_samples
from .pictures import attack_picture


class Gallery:
    """Draws the first images of the set under every attack.

    Args:
        visualizer: whose drawing functions are used.
        count: images per attack.
        gt_frame: of the ground truth, see :func:`mmrobust.batch.attack_samples`.
        score_thr: detections below it are not drawn.
    """

    def __init__(
        self, visualizer: Any, count: int, gt_frame: str, score_thr: float = 0.3
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self._folders: dict[str, Path] = {}
        self.visualizer = visualizer
        self.count = count if is_main_process() else 0
        self.gt_frame = gt_frame
        self.score_thr = score_thr
        self._clean: dict[Any, BaseDataElement] = {}

    def start(self, attack: str, folder: Path | None) -> None:
        """Begins an attack.

        Args:
            attack: its name.
            folder: of its records, beside which its pictures are kept; None for a
                temporary folder.
        """
        above = Path(self._temporary.name) / quote(attack, safe='')
        self._folders[attack] = (above if folder is None else folder) / 'pictures'

    def remember(self, key: Any, output: BaseDataElement) -> None:
        """Takes the benign prediction of an image, if it is among the first ones."""
        if len(self._clean) < self.count:
            self._clean[key] = output.cpu()

    def draw(
        self,
        attack: str,
        key: Any,
        clean: Tensor,
        attacked: Tensor,
        output: BaseDataElement,
        sample: BaseDataElement,
    ) -> None:
        """Draws an image under an attack, if it is among the first ones.

        Args:
            attack: the attack's name.
            key: of the image.
            clean: the network's input (C, H, W), 0-255.
            attacked: the same under attack.
            output: the prediction on it.
            sample: the data loader's, with the ground truth.
        """
        if key not in self._clean:
            return
        path = self._path(attack, key)
        try:
            (truth,) = attack_samples([sample], 'cpu', self.gt_frame)
            picture = attack_picture(
                self.visualizer,
                clean,
                attacked.detach().cpu(),
                self._clean[key],
                output.cpu(),
                truth,
                self.score_thr,
                attack,
            )
            temporary = path.with_suffix('.tmp.png')
            mmcv.imwrite(picture[..., ::-1], str(temporary))
            os.replace(temporary, path)
        except Exception as error:  # a picture is not worth an evaluation of hours
            text = f'the picture of image {key} under {attack} cannot be drawn: {error}'
            print_log(text, logger='current', level=logging.WARNING)

    def lacks(self, attack: str, key: Any) -> bool:
        """Whether the image has to be drawn under an attack, and is not yet."""
        return key in self._clean and not self._path(attack, key).is_file()

    def pictures(self) -> list[tuple[str, Path]]:
        """Titles and files of what was drawn, image by image."""
        found = []
        for key in self._clean:
            for attack in self._folders:
                path = self._path(attack, key)
                if path.is_file():
                    found.append((f'{attack}, image {key}', path))
        return found

    def _path(self, attack: str, key: Any) -> Path:
        name = quote(str(key), safe='')[-100:]
        return self._folders[attack] / f'{name}.png'
