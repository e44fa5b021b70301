"""Attacks every source once, then shows all images to every target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from ...errors import ConfigError
from ..backbone_transfer.metric import choose_metric, usual_keys
from .loop import Version
from .matrix import Entry, Matrix
from .plan import Plan
from .runs import run_test
from .sources import Source, follow, image_files

_CLEAN = 'clean'


def run_matrix(plan: Plan) -> Matrix:
    """Runs what has not been run, and writes the matrix after every target.

    Args:
        plan: the matrix.

    Returns:
        Its results.

    Raises:
        ConfigError: before the first attack for anything that can be known then.
    """
    sources = [Source(plan, each) for each in plan.sources]
    _check_same_images(plan, sources)
    matrix = Matrix(plan, _metric(plan))
    for source in sources:
        name = source.detector.name
        if source.done:
            _say(f'{name}: its images are there.')
        else:
            _say(f'{name}: attacking {len(source.ids)} images.')
            source.attack()
        matrix.own[name] = source.record['result']
    versions = _versions(sources)
    for target in plan.targets:
        _say(f'{target.name}: tested on {len(versions)} versions of the images.')
        folder = plan.work_dir / 'targets' / target.name
        loop = {
            'type': 'mmrobust.TransferTestLoop',
            'seed': plan.seed,
            'num_images': plan.num_images,
        }

        def prepare(loop: Any) -> None:
            loop.versions = versions

        tested = run_test(target.test_config(folder, loop), prepare)
        _enter(matrix, target.name, tested.found, sources)
        matrix.write()
    return matrix


def _versions(sources: list[Source]) -> list[Version]:
    """The images untouched, resized as each source does, and attacked."""
    versions = {_CLEAN: Version(_CLEAN, None)}
    for source in sources:
        name = _control(source, sources)
        versions.setdefault(name, Version(name, source.clean))
    for source in sources:
        name = _attacked(source)
        versions[name] = Version(name, source.adversarial)
    return list(versions.values())


def _control(source: Source, sources: list[Source]) -> str:
    """One name for all sources whose images have the same sizes."""
    sizes = source.detector.resizing()
    first = next(each for each in sources if each.detector.resizing() == sizes)
    return f'clean, at the size of {first.detector.name}'


def _attacked(source: Source) -> str:
    return f'made for {source.detector.name}'


def _enter(
    matrix: Matrix,
    target: str,
    found: Mapping[str, Mapping[str, Any]],
    sources: list[Source],
) -> None:
    """Puts what one target's test gave into the matrix."""
    values = {}
    for name, metrics in found.items():
        if not metrics:
            # CocoMetric's answer to no detection at all.
            values[name] = 0.0
            matrix.notes.append(f'{target} finds nothing on {name}: counted as 0')
        elif matrix.metric not in metrics:
            raise ConfigError(
                f'the evaluator of {target} gives no {matrix.metric!r} but '
                f'{", ".join(metrics)}: choose one of them with --metric.'
            )
        else:
            values[name] = float(metrics[matrix.metric])
    matrix.clean[target] = values[_CLEAN]
    matrix.entries += [
        Entry(
            source=source.detector.name,
            target=target,
            value=values[_attacked(source)],
            control=values[_control(source, sources)],
            metrics=dict(found[_attacked(source)]),
        )
        for source in sources
    ]


def _metric(plan: Plan) -> str:
    """The figure, which all targets must give."""
    keys = [usual_keys(target.cfg.test_evaluator) for target in plan.targets]
    if not all(keys) and plan.metric:
        return plan.metric
    shared = [key for key in keys[0] if all(key in other for other in keys)]
    if all(keys) and not shared:
        raise ConfigError(
            'the targets have no figure in common: '
            + '; '.join(
                f'{target.name} gives {", ".join(found[:3])}'
                for target, found in zip(plan.targets, keys, strict=True)
            )
            + '.'
        )
    return choose_metric(plan.metric, shared, Config())[0]


def _check_same_images(plan: Plan, sources: list[Source]) -> None:
    """Images are told apart by id, which must mean the same for all detectors."""
    first = sources[0]
    known = {source.detector.name: source.ids for source in sources}
    for detector in plan.detectors:
        if detector.name not in known:
            known[detector.name] = image_files(follow(plan, detector))
        found = known[detector.name]
        if found.keys() != first.ids.keys():
            missing = first.ids.keys() ^ found.keys()
            raise ConfigError(
                f'{detector.name} and {first.detector.name} are not tested on the same '
                f'images: {len(missing)} img_ids are only in one of the two test '
                f'sets, for instance {next(iter(missing))!r}.'
            )
        for img_id, name in found.items():
            if name != first.ids[img_id]:
                raise ConfigError(
                    f'{detector.name} and {first.detector.name} are not tested on the '
                    f'same images: img_id {img_id!r} is {name!r} in one and '
                    f'{first.ids[img_id]!r} in the other.'
                )


def _say(text: str) -> None:
    print(text, flush=True)
