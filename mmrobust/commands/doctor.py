"""Says what is installed, what is missing, and what to do about it.

Runs with nothing but Python: every package that could be missing is asked for here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .. import compat
from ..compat.stack import STACKS, version_of
from ..errors import short
from ..utils.files import cache_folder
from ..version import __version__

# By import name: the distribution, and what it is for.
_OPTIONAL = {
    'mmpretrain': ('mmpretrain', 'classifiers, ConvNeXt and ViT, weights to convert'),
    'sklearn': ('scikit-learn', "the demo's data"),
    'pyautoattack': ('pyautoattack', '--attack autoattack'),
    'imagecorruptions': ('imagecorruptions-imaug', '--attack corruptions'),
    'maite': ('maite', "MAITE's tools"),
    'timm': ('timm', "weights of timm's networks, some of them"),
    'onnxruntime': ('onnxruntime', 'detectors in ONNX files, as black boxes'),
    'pandas': ('pandas', 'reports as tables, .to_pandas()'),
    'matplotlib': ('matplotlib', 'curves and pictures of reports'),
    'shtab': ('shtab', 'mmrobust completion'),
}
# Those that an extra of mmrobust brings.
_EXTRAS = {
    'sklearn': 'demo',
    'pyautoattack': 'autoattack',
    'imagecorruptions': 'corruptions',
    'shtab': 'completion',
}
_LEAST_GIGABYTES = 2


class Doctor:
    """What is found on this machine.

    Attributes:
        facts: by section and name, one line each.
        advice: sentences that say what to do; empty if nothing is wrong.
    """

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, str]] = {}
        self.advice: list[str] = []
        for section, found in (
            ('mmrobust', self._itself()),
            ('stack', self._stack()),
            ('compute', self._compute()),
            ('disk', self._disk()),
            ('optional', self._optional()),
        ):
            self.facts[section] = dict(found)

    def text(self) -> str:
        """Returns everything, for people."""
        lines = []
        for section, found in self.facts.items():
            width = max(map(len, found))
            lines += [section, *(f'  {k:{width}}  {v}' for k, v in found.items()), '']
        if not self.advice:
            return '\n'.join([*lines, 'Nothing is missing that mmrobust needs.'])
        return '\n'.join([*lines, 'To do:', *(f'- {each}' for each in self.advice)])

    def _itself(self) -> Iterator[tuple[str, str]]:
        yield 'version', __version__
        yield 'folder', str(Path(__file__).resolve().parents[1])
        yield 'python', f'{platform.python_version()} ({sys.executable})'
        yield 'system', platform.platform()

    def _stack(self) -> Iterator[tuple[str, str]]:
        found = {
            stack: [name for name in names if version_of(name)]
            for stack, names in STACKS.items()
        }
        there = [stack for stack, names in found.items() if names]
        yield 'distributions', ' and '.join(there) or 'none'
        if len(there) > 1:
            self.advice.append(
                'Two stacks are installed under the same import names '
                f'({"; ".join(", ".join(names) for names in found.values())}), and '
                'which one Python takes is chance: make a new environment with one.'
            )
        for names in found.values():
            for name in names:
                yield name, str(version_of(name))
        for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet'):
            reason = _fails(name)
            if name.startswith('torch'):
                yield name, reason or str(version_of(name))
            elif reason:
                yield f'import {name}', reason
        if [name for name in ('torch', 'mmengine', 'mmcv', 'mmdet') if _fails(name)]:
            self.advice.append(_install(bool(there)))
            return
        yield 'operators', self._operators()

    def _operators(self) -> str:
        if compat.is_standin_active():
            if reason := _fails('torchvision'):
                self.advice.append(
                    "mmcv's operators are not compiled, and torchvision, whose kernels "
                    f'stand in, cannot be imported ({reason}): install torchvision.'
                )
            return "not compiled: torchvision's kernels stand in, but for rotated boxes"
        if reason := _fails('mmcv.ops'):
            self.advice.append(
                f"mmcv's operators cannot be imported ({reason}): install an mmcv that "
                'was compiled for this torch, or mmcv-lite.'
            )
        return reason or 'compiled with mmcv'

    def _compute(self) -> Iterator[tuple[str, str]]:
        yield 'CPUs', str(os.cpu_count())
        if _fails('torch'):
            return
        import torch

        yield 'threads', f'{torch.get_num_threads()} (OMP_NUM_THREADS changes it)'
        yield 'CUDA', f'torch is built for {torch.version.cuda or "no version of it"}'
        if not torch.cuda.is_available():
            yield 'GPU', 'none that torch sees: everything runs on the CPU'
            if shutil.which('nvidia-smi') is not None:
                self.advice.append(
                    'nvidia-smi is there, but torch sees no GPU: install a build of '
                    'torch for CUDA, or a newer driver.'
                )
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            size = device.total_memory / 2**30
            yield f'GPU {index}', f'{device.name}, {size:.0f} GiB'

    def _disk(self) -> Iterator[tuple[str, str]]:
        for name, path in (('cache', cache_folder()), ('work dirs', 'work_dirs')):
            place = Path(path).absolute()
            while not place.exists():
                place = place.parent
            free = shutil.disk_usage(place).free / 1e9
            yield name, f'{path}, {free:.1f} GB free'
            if free < _LEAST_GIGABYTES:
                self.advice.append(
                    f'{path} has only {free:.1f} GB left, and a run may write more: '
                    'free some space or choose another place.'
                )

    def _optional(self) -> Iterator[tuple[str, str]]:
        for module, (name, purpose) in _OPTIONAL.items():
            found = version_of(name) or version_of(f'onedl-{name}')
            if found is None and find_spec(module) is not None:
                found = 'there'
            how = f': pip install {name}'
            if extra := _EXTRAS.get(module):
                how += f", or mmrobust's extra {extra}"
            yield name, f'{found or "-":10} {purpose}' + ('' if found else how)


def _fails(name: str) -> str:
    """Says why a module cannot be imported; nothing if it can."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return 'not installed'
        return short(f'needs {error.name}, which is not installed')
    except Exception as error:  # what a package raises where it does not fit others
        return short(f'{type(error).__name__}: {error}')
    return ''


def _install(partly: bool) -> str:
    if partly:
        return (
            'The stack cannot be imported as it is. Versions that were tested together '
            "are installed, in the source of mmrobust, by: pip install '.[openmmlab]' "
            '-c constraints/openmmlab.txt'
        )
    return (
        'There is no stack. The extra openmmlab of mmrobust brings mmdet '
        'and torch, and the extra onedl the maintained OneDL forks in their place: in '
        "its source, pip install '.[openmmlab]' -c constraints/openmmlab.txt"
    )


def main(argv: list[str] | None = None) -> int:
    """Prints what is found.

    Args:
        argv: the arguments.

    Returns:
        0 if nothing that mmrobust needs is missing, else 1.
    """
    parser = argparse.ArgumentParser(prog='mmrobust doctor', description=__doc__)
    parser.add_argument('--json', action='store_true', help='print it as JSON')
    args = parser.parse_args(argv)
    with suppress(BrokenPipeError):
        found = Doctor()
        if args.json:
            print(json.dumps({**found.facts, 'advice': found.advice}, indent=1))
        else:
            print(found.text())
    return 1 if found.advice else 0
