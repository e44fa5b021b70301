"""What one attack found, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class AttackResult:
    """Metrics of one attack and what they cost.

    Attributes:
        name: the attack's name.
        settings: norm, eps, step_size, num_steps, objective, restarts.
        metrics: as the evaluator gives them, without prefix.
        checks: sentences about anything that makes the figures doubtful.
        forwards: images that went forwards through the network for the attack.
        backwards: images that went backwards through it.
        seconds: of attacks and predictions, added up over images.
        boxes: mAP with its interval, and counts of errors, if the model detects boxes.
        images: images that were attacked.
        queries: forward passes that only asked for the output, of attacks without
            gradients.
        quantized: the same attacked images rounded to 8 bits, stored as pictures and
            scored through the unchanged pipeline: ``metrics``, ``boxes`` (or None)
            and ``radius``, the largest perturbation after rounding.
        members: of an ensemble only, in their order: ``name``, ``settings``,
            ``images`` (on how many it ran), ``chosen`` (on how many it is the worst),
            ``mAP`` (after this member), ``forwards``, ``backwards``, ``seconds``.
        watched: statistics of the gradients, as far as the attack was watched.
        asks: what the attack asks the model for: ``'gradients'``, ``'values'`` or
            ``'nothing'``.
        baseline: whether it is no search but what every attack has to beat (noise).
        transferable: whether its gradients are bent so that its images fool other
            models too.
        base: the attack that points of a curve, like ``pgd-eps2``, have in common.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    boxes: dict[str, Any] | None = None
    images: int = 0
    queries: int = 0
    quantized: dict[str, Any] | None = None
    members: list[dict[str, Any]] | None = None
    watched: dict[str, Any] | None = None
    asks: str = 'gradients'
    baseline: bool = False
    transferable: bool = False
    base: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The attack's entry in the report."""
        extra = {
            'boxes': self.boxes,
            'quantized': self.quantized,
            'members': self.members,
            'watched': self.watched,
        }
        return {
            'name': self.name,
            **self.settings,
            **({'base': self.base} if self.base else {}),
            'metrics': self.metrics,
            **{key: value for key, value in extra.items() if value},
            'checks': self.checks,
            'cost': {
                'images': self.images,
                'forwards': self.forwards,
                'backwards': self.backwards,
                'queries': self.queries,
                'seconds': round(self.seconds, 2),
                'per_image': self.per_image(),
            },
        }

    def per_image(self) -> dict[str, float] | None:
        """What one image cost, or None if the images were not counted."""
        if not self.images:
            return None
        return {
            key: round(getattr(self, key) / self.images, 4)
            for key in ('forwards', 'backwards', 'queries', 'seconds')
        }
