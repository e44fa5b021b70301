"""Loads the images of a pass from corrupted pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from ..attacks import Attack
from ..corruptions import Corruption, corrupted_dataset
from .attacker import Attacker
from .images import EvaluatedImages
from .picture_pipeline import PicturePipeline


class CorruptedImages:
    """The images of a data loader, from pictures that are corrupted on loading.

    Worker processes of the loader corrupt, as they load.

    Args:
        dataloader: of the pictures as they are.
        whole_batches: see :class:`.EvaluatedImages`.
        seed: of all draws, together with the image's id.
    """

    def __init__(self, dataloader: DataLoader, whole_batches: bool, seed: int) -> None:
        self._dataloader = dataloader
        self._whole_batches = whole_batches
        self._seed = seed
        # The latest, for passes on top of each other that share it.
        self._known: tuple[Corruption, EvaluatedImages] | None = None

    def check(self, attacks: Iterable[Attack]) -> None:
        """Makes sure that pictures can be corrupted, before any pass.

        Raises:
            ConfigError: see :func:`mmrobust.corruptions.corrupted_dataset`.
        """
        found = [attack.corruption for attack in attacks if attack.corruption]
        for corruption in found[:1]:
            corrupted_dataset(self._dataloader.dataset, corruption, self._seed)

    def put_into(
        self, attacker: Attacker, corruption: Corruption
    ) -> tuple[EvaluatedImages, Attacker]:
        """Returns the corrupted images, and the attacker that knows their pictures."""
        if self._known is None or self._known[0] != corruption:
            self._known = corruption, self._load(corruption)
        images = self._known[1]
        if attacker.pixels is not None:
            attacker = replace(attacker, pixels=PicturePipeline(images.dataset))
        return images, attacker

    def drawn(self, attacks: Mapping[str, Attack]) -> set[str]:
        """Returns the passes to be drawn: of each corruption the largest severity."""
        largest: dict[Any, tuple[int, str]] = {}
        for name, attack in attacks.items():
            if attack.corruption:
                settings = attack.describe()
                severity = settings.pop('severity')
                key = str(settings)
                largest[key] = max(largest.get(key, (0, '')), (severity, name))
        return {name for _, name in largest.values()}

    def _load(self, corruption: Corruption) -> EvaluatedImages:
        loader = self._dataloader
        dataset = corrupted_dataset(loader.dataset, corruption, self._seed)
        # The same images in the same batches, on every process.
        own: DataLoader = DataLoader(
            dataset,
            batch_sampler=loader.batch_sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        return EvaluatedImages(own, self._whole_batches)
