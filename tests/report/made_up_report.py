"""A report with everything in it that a report can have."""

from __future__ import annotations

from typing import Any

from mmrobust.report import AttackResult, RobustnessReport

# Names that break pages and tables which do not escape them.
NASTY = '<script>alert("a|b") & \'c\'</script>'
CLASSES = ('cat', NASTY, 'dog', 'never seen')


def boxes(estimate: float, found: int) -> dict[str, Any]:
    """As the analysis gives them; ten objects."""
    rare = 1.5 * estimate - 0.2
    return {
        'mAP': dict(
            estimate=estimate, low=estimate - 0.05, high=estimate + 0.04, resamples=8
        ),
        'drop': dict(estimate=0.6 - estimate, low=-0.01, high=0.7),
        'errors': dict(
            score_thr=0.3, objects_found=found, objects_misclassified=1,
            objects_mislocalised=0, missed=9 - found, hallucinated=4, duplicate=2,
        ),
        'sizes': dict(small=estimate / 2, medium=estimate, large=None),
        'classes': {'cat': estimate, NASTY: rare, 'dog': 0.4, 'never seen': None},
    }  # fmt: skip


def attack(
    name: str, estimate: float, settings: dict[str, Any] | None = None, **fields: Any
) -> AttackResult:
    """An attack of PGD's settings."""
    given = dict(
        norm='linf', eps=4.0, step_size=1.0, num_steps=10, objective='total', restarts=1
    )
    metrics = {'coco/bbox_mAP': estimate + 0.001, 'coco/bbox_mAP_50': 0.9}
    fields = {'boxes': boxes(estimate, int(9 * estimate)), 'images': 8, **fields}
    return AttackResult(name, {**given, **(settings or {})}, metrics, **fields)


def report() -> RobustnessReport:
    """Two attacks on a curve, and one without gradients on none."""
    made = RobustnessReport(
        config='configs/model_a.py',
        checkpoint='dir/<b>model</b>.pth',
        checkpoint_sha256='0a' * 32,
        seed=3,
        versions={'torch': '2'},
        dataset={'ann_file': 'a.json', 'num_images': 8},
        checks=[f'first doubt {NASTY}'],
        environment={'command': ['tools/test.py', 'a b']},
        config_text=f'model = "{NASTY}"\n</pre></body>',
    )
    made.benign = {'coco/bbox_mAP': 0.601, 'coco/bbox_mAP_50': 0.95}
    made.benign_boxes = boxes(0.6, 8)
    del made.benign_boxes['drop']
    slow = {'num_steps': 500, 'step_size': None, 'gradient_free': True}
    costs = dict(queries=4000, seconds=12.5, checks=['second doubt'])
    made.attacks = [
        attack('pgd-eps2', 0.5, {'eps': 2.0, 'step_size': 0.5}, base='pgd'),
        attack('pgd-eps4', 0.25, base='pgd', forwards=97, backwards=80),
        attack(f'square {NASTY}', 0.55, slow, asks='values', **costs),
    ]
    strong = made.attacks[1]
    metrics = {'coco/bbox_mAP': 0.35}
    strong.quantized = dict(metrics=metrics, boxes=boxes(0.375, 3), radius=4.25)
    strong.watched = {'zero_share': 0.125, 'images': 8, 'name': 'not a number'}
    strong.members = [
        dict(
            name=f'apgd {NASTY}', settings={'num_steps': 20}, images=8, chosen=5,
            mAP=0.31, forwards=160, backwards=150, seconds=3.25,
        ),
        dict(
            name='square', settings={}, images=6, chosen=3,
            mAP=0.25, forwards=600, backwards=0, seconds=7.0,
        ),
    ]  # fmt: skip
    passes = {'benign': 1, 'pgd-eps4': 7}
    made.worst_case = dict(
        interval=dict(estimate=0.2, low=0.15, high=0.3),
        mAP=0.2, per_image_mAP=0.22, images=passes, rounds=2, converged=True,
    )  # fmt: skip
    return made
