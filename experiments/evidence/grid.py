"""Which runs the study consists of: every claim's runs, each run once.

A run is data: its name, kind, seed and settings decide what it computes (see
``runs.py``), its needs are the runs whose weights it takes. Costs are counted in
passes: one forward and backward pass of a batch, two thirds of it backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data import Amounts
from mmrobust.attacks import attack_preset

CLAIMS = tuple(range(1, 10))
SEEDS = (0, 1, 2)
EPS = 4
SWEEP = (0, 1, 2, 4, 8)
PICTURE, INPUT = 40, 96  # sides of what classifiers and detectors get, pixels
# The detector of all claims that are not about heads: the one that learns most within
# the passes of a small study.
BASE = 'faster-rcnn'
SLOWER = 4  # times as many passes for the other heads
_ALL_HEADS = ('faster-rcnn', 'fcos', 'dn-detr')

ATTACKS: dict[str, dict[str, Any]] = {
    'total': {'type': 'mmrobust.PGD', 'num_steps': 10},
    'cls': {'type': 'mmrobust.PGD', 'num_steps': 10, 'objective': 'cls'},
    'reg': {'type': 'mmrobust.PGD', 'num_steps': 10, 'objective': 'reg'},
    'cwa': {'type': 'mmrobust.PGD', 'num_steps': 10, 'objective': 'cwa'},
}
ENSEMBLE = {'ensemble': {'type': 'mmrobust.Ensemble', 'version': 'fast-1'}}

# Weights that detectors start from: how their classifier differs from the robust
# ResNet-18.
WEIGHTS: dict[str, dict[str, Any]] = {
    'random': {},
    'standard': {'eps': 0},
    'robust': {},
    # As many updates as the standard one, which takes 10/3 times its passes.
    'robust-long': {'share': 10 / 3},
    'convnext': {'backbone': 'convnext'},
    'convstem': {'backbone': 'convnext-convstem'},
    'swin': {'backbone': 'swin'},
}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        amounts: of the detection set.
        upstream: passes of a classifier's training.
        detector: passes of a detector's training.
        detector_batch: images per batch.
        transfer: updates of a transfer run.
        num_images: test images that are attacked.
        attacked_pictures: pictures that classifiers are attacked on.
        queries: of the black-box attack.
        apgd_steps: of each of AutoAttack's members.
        target_classes: of its targeted member.
        heads: detectors of claims 4 and 5. A DETR that starts from scratch finds next
            to nothing within the passes of a small study.
        robust: weights that claims 1 and 2 try as robust ones.
        claims: that are tested unless others are asked for.
    """

    amounts: Amounts
    upstream: int
    detector: int
    detector_batch: int
    transfer: int
    num_images: int
    attacked_pictures: int
    queries: int
    apgd_steps: int
    target_classes: int
    heads: tuple[str, ...] = _ALL_HEADS
    robust: tuple[str, ...] = ('robust', 'robust-long')
    claims: tuple[int, ...] = CLAIMS


SCALES = {
    'smoke': Scale(Amounts(24, 8, (128, 128)), 20, 16, 4, 2, 4, 8, 3, 3, 3),
    'small': Scale(
        Amounts(1500, 60, (128, 128)),
        upstream=900,
        detector=500,
        detector_batch=8,
        transfer=60,
        num_images=40,
        attacked_pictures=50,
        queries=100,
        apgd_steps=20,
        target_classes=3,
        heads=('faster-rcnn', 'fcos'),
        robust=('robust',),
        claims=CLAIMS[:-2],
    ),
    # For CIFAR-10 on a CPU.
    'medium': Scale(
        Amounts(3000, 60, (128, 128)),
        upstream=2000,
        detector=1000,
        detector_batch=8,
        transfer=60,
        num_images=40,
        attacked_pictures=100,
        queries=100,
        apgd_steps=20,
        target_classes=3,
        heads=('faster-rcnn', 'fcos'),
        claims=(1, 2, 7, 8),
    ),
    'full': Scale(
        Amounts(4000, 300, (128, 160)), 24000, 6000, 16, 1000, 300, 500, 500, 100, 9
    ),
}


@dataclass
class Run:
    """One training or measurement.

    Attributes:
        name: unique; its folder below the work dir.
        kind: function of ``runs.py`` that does it.
        seed: of everything random.
        settings: what it does, JSON.
        needs: runs that come first, by the role that they play.
        claims: which claims it serves.
    """

    name: str
    kind: str
    seed: int
    settings: dict[str, Any]
    needs: dict[str, str] = field(default_factory=dict)
    claims: set[int] = field(default_factory=set)


class Grid:
    """All runs of a scale, in an order in which each comes after what it needs.

    Args:
        scale: sizes.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.runs: dict[str, Run] = {}

    def add(
        self,
        claim: int,
        kind: str,
        title: str,
        seed: int,
        settings: dict[str, Any],
        needs: Mapping[str, str] | None = None,
    ) -> str:
        """Adds a run, or the claim to one that is there; returns its name."""
        name = f'{kind}/{title}/seed{seed}'
        run = Run(name, kind, seed, settings, dict(needs or {}))
        known = self.runs.setdefault(name, run)
        if (known.settings, known.needs) != (run.settings, run.needs):
            raise ValueError(f'two different runs are called {name}')
        self._serve(name, claim)
        return name

    def _serve(self, name: str, claim: int) -> None:
        run = self.runs[name]
        run.claims.add(claim)
        for needed in run.needs.values():
            self._serve(needed, claim)

    # --- the upstream task ---

    def classifier(
        self,
        claim: int,
        seed: int,
        backbone: str = 'resnet18',
        eps: float = EPS,
        start: str | None = None,
        heavy: bool = False,
        share: float = 1.0,
        classes: str = 'all',
        part: str = '',
        as_long: bool = False,
    ) -> str:
        """A classifier's training; ``eps`` 0 is normal training.

        Args:
            claim: that it serves.
            seed: of everything.
            backbone: of ``models.py``.
            eps: of APGD with two steps, in pixel units.
            start: run whose weights it starts from.
            heavy: augmentation and EMA of arXiv 2303.01870.
            share: of the passes of a classifier.
            classes: ``'all'``, ``'first'`` or ``'last'`` half.
            part: for the name.
            as_long: as many updates as with an adversary, where there is none.
        """
        # APGD with two steps: 3 forward and 2 backward passes before the update's.
        passes = share * self.scale.upstream
        updates = round(passes if eps == 0 and not as_long else passes / (10 / 3))
        title = '-'.join(
            filter(
                None,
                [
                    backbone,
                    f'eps{eps:g}',
                    'heavy' if heavy else '',
                    'from-standard' if start else '',
                    part,
                    f'{share:.3g}' if share != 1 else '',
                ],
            )
        )
        settings = {
            'backbone': backbone,
            'eps': eps,
            'heavy': heavy,
            'classes': classes,
            'updates': updates,
            'passes': updates if eps == 0 else passes,
        }
        needs = {'start': start} if start else None
        return self.add(claim, 'classifier', title, seed, settings, needs)

    def upstream(self, claim: int, seed: int, weights: str) -> str | None:
        """The run whose weights are called so, see WEIGHTS; None for random ones."""
        if weights == 'random':
            return None
        return self.classifier(claim, seed, **WEIGHTS[weights])

    # --- the downstream task ---

    def detector(
        self,
        claim: int,
        seed: int,
        weights: str,
        head: str = BASE,
        method: str = 'free',
        passes: float | None = None,
        optimizer: str = 'adamw',
        lr: float = 2e-3,
        backbone_lr: float | None = None,
    ) -> str:
        """A detector's training, and its evaluation under all attacks.

        Args:
            claim: that it serves.
            seed: of everything.
            weights: of the backbone, see :meth:`upstream`.
            head: config of the detector.
            method: ``'standard'``, ``'free'`` (FreeAT, m = 4) or ``'pgd'`` (PGD-AT, 2
                steps).
            passes: of its training, by default those of the scale.
            optimizer: ``'adamw'`` or ``'sgd'``.
            lr: learning rate.
            backbone_lr: its multiplier for the backbone, by default 0.1, or 1 for
                random weights.
        """
        start = self.upstream(claim, seed, weights)
        usual = 0.1 if start else 1.0
        backbone_lr = usual if backbone_lr is None else backbone_lr
        passes = round(self.scale.detector if passes is None else passes)
        updates = round(passes / {'standard': 1, 'free': 1, 'pgd': 3}[method])
        title = '-'.join(
            filter(
                None,
                [
                    head,
                    weights,
                    method,
                    f'{passes}' if passes != self.scale.detector else '',
                    f'{optimizer}{lr:g}' if optimizer != 'adamw' else '',
                    f'bb{backbone_lr:g}' if backbone_lr != usual else '',
                ],
            )
        )
        settings = {
            'head': head,
            'weights': weights,
            'backbone': WEIGHTS[weights].get('backbone', 'resnet18'),
            'method': method,
            'eps': EPS,
            'passes': passes,
            'updates': updates,
            'optimizer': optimizer,
            'lr': lr,
            'backbone_lr': backbone_lr,
        }
        needs = {'start': start} if start else None
        return self.add(claim, 'detector', title, seed, settings, needs)

    def attacked(
        self, claim: int, seed: int, detector: str, what: str, attacks: dict[str, Any]
    ) -> str:
        """A further evaluation of a detector."""
        title = f'{detector.split("/")[1]}-{what}'
        settings = {'attacks': attacks}
        return self.add(
            claim, 'attacked', title, seed, settings, {'detector': detector}
        )

    def autoattack(self, claim: int, seed: int, classifier: str, norm: str) -> str:
        """AutoAttack's APGD members on a classifier; with linf at two resolutions."""
        title = f'{classifier.split("/")[1]}-{norm}'
        sides = [PICTURE, PICTURE * 4 // 3] if norm == 'linf' else [PICTURE]
        settings = {'norm': norm, 'sides': sides}
        return self.add(
            claim, 'autoattack', title, seed, settings, {'classifier': classifier}
        )

    # --- the claims ---

    def build(self, claims: tuple[int, ...], seeds: tuple[int, ...]) -> list[Run]:
        """The runs of some claims and seeds: all claims of one seed, then the next."""
        for seed in seeds:
            for claim in claims:
                getattr(self, f'_claim{claim}')(seed)
        return list(self.runs.values())

    def equal_budget(self) -> float:
        """Passes of a detector from scratch that cost a pre-training more.

        A pass is counted by its pixels: those of a classifier are smaller.
        """
        pixels = 64 * PICTURE**2
        own = self.scale.detector_batch * INPUT**2
        return self.scale.detector + self.scale.upstream * pixels / own

    def long_enough(self, head: str) -> int:
        """Passes of a head: those of one stage and DETRs learn more slowly."""
        return self.scale.detector * (1 if head == BASE else SLOWER)

    def _claim1(self, seed: int) -> None:
        self.detector(1, seed, 'standard', method='standard')
        self.detector(1, seed, 'random')
        self.detector(1, seed, 'random', passes=self.equal_budget())
        for weights in ('standard', *self.scale.robust):
            detector = self.detector(1, seed, weights)
            self.attacked(1, seed, detector, 'ensemble', ENSEMBLE)
            classifier = self.upstream(1, seed, weights)
            assert classifier
            self.autoattack(1, seed, classifier, 'linf')
        # A backbone that has nothing worth keeping may need the full rate.
        self.detector(1, seed, 'standard', backbone_lr=1.0)

    def _claim2(self, seed: int) -> None:
        for weights in self.scale.robust:
            self.detector(2, seed, weights)
            self.detector(2, seed, weights, backbone_lr=1.0)
        self.detector(2, seed, 'robust', optimizer='sgd', lr=0.01)

    def _claim3(self, seed: int) -> None:
        for passes in (self.scale.detector, 2 * self.scale.detector):
            for method in ('free', 'pgd'):
                self.detector(3, seed, 'robust', method=method, passes=passes)

    def _claim4(self, seed: int) -> None:
        for weights in ('robust', 'standard'):
            for head in self.scale.heads:
                self.detector(4, seed, weights, head, passes=self.long_enough(head))

    def _claim5(self, seed: int) -> None:
        detectors = [
            self.detector(5, seed, 'robust', head, passes=self.long_enough(head))
            for head in self.scale.heads
        ]
        detectors.append(self.detector(5, seed, 'standard', method='standard'))
        needs = {name.split('/')[1]: name for name in detectors}
        self.add(5, 'matrix', 'pgd', seed, {}, needs)

    def _claim6(self, seed: int) -> None:
        for weights in ('convnext', 'convstem'):
            classifier = self.upstream(6, seed, weights)
            assert classifier
            for norm in CLASSIFIER_RADII:
                self.autoattack(6, seed, classifier, norm)
            detector = self.detector(6, seed, weights)
            self.attacked(6, seed, detector, 'l2-l1', NORMS)

    def _claim7(self, seed: int) -> None:
        half = self.classifier(7, seed, eps=0, share=0.5)
        for start in (None, half):
            for heavy in (False, True):
                classifier = self.classifier(
                    7, seed, start=start, heavy=heavy, share=0.5 if start else 1.0
                )
                self.autoattack(7, seed, classifier, 'linf')

    def _claim8(self, seed: int) -> None:
        needs = {
            f'{eps:g}': self.classifier(
                8,
                seed,
                eps=eps,
                share=0.5,
                classes='first',
                part='first-half',
                as_long=True,
            )
            for eps in SWEEP
        }
        for side in (32, 8):
            settings = {'side': side, 'lrs': [0.02, 0.1, 0.5]}
            self.add(8, 'transfer', f'last-half-{side}px', seed, settings, needs)

    def _claim9(self, seed: int) -> None:
        self.detector(9, seed, 'swin')
        square = {'type': 'mmrobust.Square', 'num_queries': self.scale.queries}
        for weights, method in (('robust', 'free'), ('standard', 'standard')):
            detector = self.detector(9, seed, weights, method=method)
            self.attacked(9, seed, detector, 'square', {'square': square})
        for weights in ('robust', 'standard'):
            self.detector(9, seed, weights, 'mask-rcnn')


# Radii of the norms that nobody trains with: as large for these images as those of
# arXiv 2303.01870 are for ImageNet's, relative to the side for l2 and the area for l1.
CLASSIFIER_RADII = {
    'linf': EPS,
    'l2': 510 * PICTURE / 224,
    'l1': 19125 * (PICTURE / 224) ** 2,
}
DETECTOR_RADII = {'l2': 510 * INPUT / 224, 'l1': 19125 * (INPUT / 224) ** 2}
NORMS: dict[str, dict[str, Any]] = {
    norm: attack_preset('apgd', norm=norm, eps=eps, num_steps=10)
    for norm, eps in DETECTOR_RADII.items()
}
