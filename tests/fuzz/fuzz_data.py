"""Cases of data and checkpoints: incomplete, damaged, of another kind, enormous."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
from fuzz_case import HERE, PROJECT, VALUES, Case, Source
from fuzz_project import DAMAGED

_ANN = f'{HERE}/given/annotations.json'
_BAD = [v for v in VALUES if not isinstance(v, (Source, bytes, complex, tuple))]
_BAD = [
    v for v in _BAD if not isinstance(v, dict) or all(isinstance(k, str) for k in v)
]
_NUMBERS = (-1, 0, -5.5, 1e308, 10**30, float('nan'), float('inf'), -float('inf'), 0.25)


def draw(rng: Random, number: int) -> Case:
    """A case; the kinds come in turns."""
    kinds = (_annotations, _images, _annotations, _voc, _text)
    return kinds[number % len(kinds)](rng, f'data-{number}')


def _tool(rng: Random) -> tuple[str, list[str]]:
    """A tool that reads data, and its arguments."""
    if rng.random() < 0.4:
        return 'train.py', [f'{PROJECT}/config.py']
    base = [f'{PROJECT}/config.py', f'{PROJECT}/good.pth']
    attack = ['--attack', 'pgd', '--num-steps', '1', '--check-images', '0']
    return 'test.py', [*base, *rng.choice(([], attack))]


def _with_data(
    rng: Random, name: str, prepare: Callable, culprits: tuple[str, ...] = ()
) -> Case:
    tool, argv = _tool(rng)
    options = [f'data_root={HERE}/given/']
    argv = [*argv, '--work-dir', f'{HERE}/work', '--cfg-options', *options]
    return Case(name, tool, argv, culprits, prepare=prepare)


def _copy(project: Path, here: Path) -> dict[str, Any]:
    """The project's data in the case's folder; returns the annotations."""
    given = here / 'given'
    (given / 'images').mkdir(parents=True)
    for path in (project / 'data' / 'images').iterdir():
        (given / 'images' / path.name).write_bytes(path.read_bytes())
    text = (project / 'data' / 'annotations.json').read_text()
    (given / 'annotations.json').write_text(text)
    return json.loads(text)


# ------------------------------------------------------------------- annotations


def _annotations(rng: Random, name: str) -> Case:
    """One or two values of the annotation file are wrong."""
    seed = rng.random()
    count = rng.choice((1, 1, 2))

    def prepare(project: Path, here: Path) -> None:
        content = _copy(project, here)
        own = Random(seed)
        for _ in range(count):
            content = _mutate(own, content)
        text = json.dumps(content)
        (here / 'given' / 'annotations.json').write_text(text)

    return _with_data(rng, name, prepare)


def _mutate(rng: Random, content: Any) -> Any:
    kind = rng.randrange(12)
    if not isinstance(content, dict) or kind == 0:
        return deepcopy(rng.choice(_BAD))
    parts = [k for k in ('images', 'annotations', 'categories') if content.get(k)]
    parts = [k for k in parts if isinstance(content[k], list)]
    if not parts or kind == 1:
        key = rng.choice(('images', 'annotations', 'categories'))
        if rng.random() < 0.4:
            content.pop(key, None)
        else:
            content[key] = deepcopy(rng.choice((*_BAD, [], [])))
        return content
    items = content[rng.choice(parts)]
    place = rng.randrange(len(items))
    item = items[place]
    if kind == 2:
        items.append(deepcopy(item))  # an id twice
    elif kind == 3:
        items[place] = deepcopy(rng.choice(_BAD))
    elif kind == 4 or not isinstance(item, dict) or not item:
        del items[place]
    elif kind == 5:
        item.pop(rng.choice(sorted(item)))
    elif kind in (6, 7) and isinstance(item.get('bbox'), list) and item['bbox']:
        item['bbox'][rng.randrange(len(item['bbox']))] = rng.choice(_NUMBERS)
    elif kind == 8 and 'bbox' in item:
        item['bbox'] = rng.choice(([], [1, 2], [0, 0, 0, 0], ['a'] * 4, [1] * 5, 'x'))
    elif kind == 9:
        key = rng.choice([k for k in item if k.endswith('id')] or sorted(item))
        item[key] = rng.choice((0, -1, 999, '1', None, 10**30, 1.5, 'é'))
    else:
        item[rng.choice(sorted(item))] = deepcopy(rng.choice((*_BAD, *_NUMBERS)))
    return content


def _text(rng: Random, name: str) -> Case:
    """The file itself is damaged."""
    kind = rng.choice(
        ('cut', 'empty', 'bytes', 'gone', 'folder', 'prose', 'utf-16', 'twice', 'deep')
    )
    share = rng.random()

    def prepare(project: Path, here: Path) -> None:
        _copy(project, here)
        path = here / 'given' / 'annotations.json'
        text = path.read_text()
        path.unlink()
        if kind == 'folder':
            path.mkdir()
        elif kind != 'gone':
            path.write_bytes(
                {
                    'cut': text[: int(share * (len(text) - 1))].encode(),
                    'empty': b'',
                    'bytes': bytes(range(256)),
                    'prose': b'no annotations',
                    'utf-16': text.encode('utf-16'),
                    'twice': (text + text).encode(),
                    'deep': b'[' * 100000,
                }[kind]
            )

    case = _with_data(rng, name, prepare, ('annotations.json',))
    case.fails = True
    return case


# ------------------------------------------------------------------------ images


def _png(width: int, height: int) -> bytes:
    """A PNG that says how large it is and has nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    parts = {b'IHDR': header, b'IDAT': zlib.compress(b''), b'IEND': b''}
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts.items())


def _encoded(picture: np.ndarray, ending: str = '.png') -> bytes:
    return bytes(cv2.imencode(ending, picture)[1])


_COLOUR = np.full((48, 64, 3), 100, np.uint8)
# Content of an image file by kind, and whether no tool can use it.
IMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    'gone': lambda whole: None,
    'empty': lambda whole: b'',
    'half': lambda whole: whole[: len(whole) // 2],
    'header': lambda whole: whole[:20],
    'text': lambda whole: b'no image',
    'zeros': lambda whole: b'\0' * 500,
    'enormous': lambda whole: _png(2**30, 2**30),
    'large': lambda whole: _png(60000, 60000),
    'no_width': lambda whole: _png(0, 10),
    'dot': lambda whole: _encoded(_COLOUR[:1, :1]),
    'line': lambda whole: _encoded(_COLOUR[:1]),
    'grey': lambda whole: _encoded(_COLOUR[..., 0]),
    'alpha': lambda whole: _encoded(np.dstack([_COLOUR, _COLOUR[..., :1]])),
    'deep': lambda whole: _encoded(_COLOUR.astype(np.uint16) * 200),
    'jpeg': lambda whole: _encoded(_COLOUR, '.jpg'),
    'bitmap': lambda whole: _encoded(_COLOUR, '.bmp'),
    'gif': lambda whole: b'GIF89a\x01\x00\x01\x00\x00\x00\x00;',
    'html': lambda whole: b'<html>404</html>',
    'smaller': lambda whole: _encoded(_COLOUR[:20, :20]),
    'larger': lambda whole: _encoded(np.tile(_COLOUR, (3, 3, 1))),
    'black': lambda whole: _encoded(_COLOUR * 0),
}
_WITHOUT = ('gone', 'empty', 'header', 'text', 'zeros', 'enormous', 'no_width', 'html')


def _images(rng: Random, name: str) -> Case:
    """One or all images are something else."""
    kind = rng.choice(sorted(IMAGES))
    every = rng.random() < 0.3

    def prepare(project: Path, here: Path) -> None:
        _copy(project, here)
        paths = sorted((here / 'given' / 'images').iterdir())
        for path in paths if every else paths[:1]:
            content = IMAGES[kind](path.read_bytes())
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)

    case = _with_data(rng, name, prepare, ('000.png', 'images'))
    # A test may not look at the image.
    case.fails = kind in _WITHOUT and (case.tool == 'train.py' or every)
    return case


# --------------------------------------------------------------------------- VOC

_XML = (
    '<annotation><size><width>64</width><height>48</height><depth>3</depth></size>'
    '<object><name>disc</name><difficult>0</difficult><bndbox><xmin>5</xmin>'
    '<ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>'
)
_LOADER = (
    'dict(_delete_=True, batch_size=1, num_workers=0, '
    "sampler=dict(type='DefaultSampler', "
    "shuffle=False), dataset=dict(type='VOCDataset', data_root='{here}/given/VOC2007',"
    "ann_file='ImageSets/Main/all.txt', data_prefix=dict(sub_data_root=''), "
    "test_mode=TEST, metainfo=dict(classes=('disc', 'square', 'stripe')), pipeline=[\n"
    "    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),"
    "    dict(type='Resize', scale=(64, 48)),"
    "    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', "
    "'img_shape', 'scale_factor'))]))"
)


def _voc(rng: Random, name: str) -> Case:
    """Something of a VOC data set is wrong."""
    kinds: dict[str, str | None] = {
        'gone': None,
        'empty': '',
        'cut': _XML[: rng.randrange(len(_XML))],
        'prose': 'no annotation',
        'no_size': _XML.replace('size>', 'sizes>'),
        'no_width': _XML.replace('<width>64</width>', ''),
        'no_name': _XML.replace('<name>disc</name>', ''),
        'no_box': _XML.replace('bndbox', 'box'),
        'no_difficult': _XML.replace('<difficult>0</difficult>', ''),
        'unknown': _XML.replace('disc', 'gone'),
        'no_objects': _XML[: _XML.index('<object>')] + '</annotation>',
        **{
            f'{key}={value}': _XML.replace(f'<{key}>{old}<', f'<{key}>{value}<')
            for key, old in (('xmin', 5), ('ymax', 30), ('width', 64), ('difficult', 0))
            for value in ('x', '', 'nan', '-5', '1e9', '0', '9' * 30)
        },
        'bomb': (
            '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
            + _XML.replace('disc', '&b;')
        ),
    }
    kind = rng.choice(sorted(kinds))
    lists = rng.choice(
        ('0\n1\n', '0\n1\n', '0\n1\n', '', '\n', '0\n0\n', 'gone\n', '0')
    )
    if rng.random() < 0.1:
        lists = 'é\x00\n'

    def prepare(project: Path, here: Path) -> None:
        root = here / 'given' / 'VOC2007'
        for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (root / folder).mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
        for number in (0, 1):
            cv2.imwrite(str(root / 'JPEGImages' / f'{number}.jpg'), picture)
            text = kinds[kind] if number == 0 else _XML
            if text is not None:
                (root / 'Annotations' / f'{number}.xml').write_text(text)
        (root / 'ImageSets' / 'Main' / 'all.txt').write_text(lists)

    tool, argv = _tool(rng)
    metric = "dict(_delete_=True, type='VOCMetric', metric='mAP', eval_mode='area')"
    text = f"_base_ = '{PROJECT}/config.py'\n"
    for key in ('train', 'val', 'test'):
        text += f'{key}_dataloader = ' + _LOADER.replace('TEST', str(key != 'train'))
        text += '\n'
    text += f'test_evaluator = val_evaluator = {metric}\n'
    text += 'test_cfg = dict(num_images=None)\n'
    argv = [f'{HERE}/given/voc.py', *argv[1:], '--work-dir', f'{HERE}/work']
    return Case(name, tool, argv, files={'given/voc.py': text}, prepare=prepare)


# ------------------------------------------------------------------- checkpoints


def draw_checkpoint(rng: Random, number: int) -> Case:
    """A checkpoint that is none, or not of this model, given to any tool."""
    kind = DAMAGED[number % len(DAMAGED)]
    path = f'{PROJECT}/{kind}.pth'
    config = f'{PROJECT}/config.py'
    ways: list[tuple[str, list[str]]] = [
        ('test.py', [config, path]),
        ('test.py', [config, path, '--attack', 'fgsm', '--check-images', '0']),
        ('train.py', [config, '--resume', path]),
        ('train.py', [config, '--cfg-options', f'load_from={path}']),
        ('train.py', [config, '--cfg-options', *_INIT.format(path).split()]),
        ('convert_backbone.py', [path, 'out.pth', '--normalization', 'imagenet']),
        ('transfer.py', [config, '--checkpoints', f'4={path}']),
        ('transfer_matrix.py', [f'a={config}:{path}', '--num-images', '2']),
    ]
    tool, argv = ways[number // len(DAMAGED) % len(ways)]
    if rng.random() < 0.3:
        tool, argv = rng.choice(ways)
    if tool != 'convert_backbone.py':
        argv = [*argv, '--work-dir', f'{HERE}/work']
    return Case(f'checkpoints-{number}', tool, argv, (f'{kind}.pth',))


_INIT = 'model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint={}'
