"""Runs the tutorials' commands and code as they stand on the pages, in small.

    python experiments/tutorials/run.py --folder work_dirs/tutorials

Data, steps and images are fewer, and what a page downloads is made here: this shows
that every command works, not what comes out of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.hub import get_config
from mmrobust.datasets import make_digits
from notebook import run

ROOT = Path(__file__).resolve().parents[2]
PAGES = ('own-data', 'published-checkpoint', 'fine-tuning', 'patch')
# Its detectors are those of fine-tuning.
NOTEBOOK = 'from-python'

# What is put in the place of what stands on the pages.
SMALL = (
    (r'--num-images \d+', '--num-images 2'),
    (r'num_images=\d+', 'num_images=2'),
    (r'(tools/test.py \S+ \S+)', r'\1 --check-images 0'),
    (r'--passes \d+', '--passes 1'),
    (r"make_digits\('data/mine'\)", "make_digits('data/mine', num_train=2, num_val=2)"),
    (r'iter_1200', 'iter_8'),
    (r'curl -Lo \S+ \S+', 'true'),
)
# Options of commands whose line begins like this.
_UPDATES = (
    'train_cfg.max_iters=8 train_cfg.val_interval=8 '
    'default_hooks.checkpoint.interval=8 '
    'train_dataloader.batch_size=4 val_dataloader.dataset.indices=4'
)
_SIDE = '(128,128)'
OPTIONS = {
    'python tools/train.py mine.py': 'load_from=None model.backbone.init_cfg=None '
    f'train_dataloader.dataset.pipeline.2.scale="{_SIDE}" '
    f'val_dataloader.dataset.pipeline.1.scale="{_SIDE}" '
    f'test_dataloader.dataset.pipeline.1.scale="{_SIDE}" '
    'train_dataloader.num_workers=0 train_dataloader.persistent_workers=False',
    'python tools/test.py mine.py': 'model.backbone.init_cfg=None '
    f'test_dataloader.dataset.pipeline.1.scale="{_SIDE}"',
    'python tools/test.py mmdet::': 'model.backbone.init_cfg=None '
    f'test_dataloader.dataset.pipeline.1.scale="{_SIDE}"',
    'python tools/train.py configs/demo': _UPDATES,
}


def main() -> int:
    """Runs all blocks of the pages, in a folder where tools and configs are at hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--folder', default='work_dirs/tutorials')
    pages = [*PAGES, NOTEBOOK]
    parser.add_argument('--pages', nargs='+', choices=pages, default=pages)
    args = parser.parse_args()
    folder = Path(args.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name in ('tools', 'configs'):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    register_all_modules()
    finish('stand-ins for what pages download', put_stand_ins)
    for page in args.pages:
        print(f'\n## {page}', flush=True)
        if page == NOTEBOOK:
            path = ROOT / 'docs' / 'tutorials' / f'{page}.ipynb'
            finish(path.name, partial(run, path, smaller))
            continue
        text = (ROOT / 'docs' / 'tutorials' / f'{page}.md').read_text(encoding='utf-8')
        for language, code in re.findall(
            r'^```(bash|python)\n(.*?)^```', text, re.M | re.S
        ):
            code = smaller(code)
            if language == 'python':
                run_python(code)
                continue
            for line in code.replace('\\\n', ' ').splitlines():
                run_line(line)
    print('\nAll commands have run.')
    return 0


def smaller(code: str) -> str:
    """Returns a block of code with less to do."""
    for old, new in SMALL:
        code = re.sub(old, new, code)
    return code


def run_python(code: str) -> None:
    """Writes the block if it begins with a file's name, else runs it."""
    if named := re.match(r'# (\w+\.py)\n', code):
        Path(named[1]).write_text(code, encoding='utf-8')
        print(f'\nwritten: {named[1]}', flush=True)
        return
    finish(code.strip().splitlines()[-1], lambda: exec(code, {}))


def run_line(line: str) -> None:
    """Runs a command: one of tools/ with what this process has imported."""
    for start, options in OPTIONS.items():
        if line.startswith(start):
            line += ' ' if '--cfg-options' in line else ' --cfg-options '
            line += options
    words = shlex.split(line)
    if words[0] != 'python':
        subprocess.run(line, shell=True, check=True)
        return

    def tool() -> None:
        sys.argv = words[1:]
        sys.path.insert(0, str(ROOT / 'tools'))
        runpy.run_path(words[1], run_name='__main__')

    finish(' '.join(words[:4]), tool)


def finish(title: str, job: object) -> None:
    """Runs a job in a process of its own; its failure ends the program.

    Nothing that has threads may run in this one before: they are not in the other.
    """
    started = time.monotonic()
    print(f'\n$ {title} ...', flush=True)
    child = os.fork()
    if child == 0:
        try:
            job()  # type: ignore[operator]
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(f'[{time.monotonic() - started:.0f} s, status {status}]', flush=True)
    if status:
        sys.exit(f'{title} failed')


def put_stand_ins() -> None:
    """Makes data/coco of digits, and a checkpoint of RetinaNet with random weights."""
    coco, weights = Path('data/coco'), Path('checkpoints/retinanet.pth')
    if not coco.exists():
        make_digits(coco, num_train=4, num_val=4)
        (coco / 'val').rename(coco / 'val2017')
        source = coco / 'annotations' / 'instances_val.json'
        content = json.loads(source.read_text())
        first = min(each['id'] for each in content['categories'])
        for each in content['annotations']:
            each['category_id'] += 1 - first
        names = CocoDataset.METAINFO['classes']
        content['categories'] = [
            {'id': place, 'name': name} for place, name in enumerate(names, 1)
        ]
        target = source.with_name('instances_val2017.json')
        target.write_text(json.dumps(content))
    if not weights.exists():
        weights.parent.mkdir(exist_ok=True)
        model = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
        model.backbone.init_cfg = None
        meta = {'dataset_meta': {'classes': CocoDataset.METAINFO['classes']}}
        state = MODELS.build(model).state_dict()
        torch.save({'state_dict': state, 'meta': meta}, weights)


if __name__ == '__main__':
    sys.exit(main())
