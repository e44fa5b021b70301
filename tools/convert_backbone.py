"""Converts published robust weights, and prints the config that uses them."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from mmrobust import cli
from mmrobust.utils.files import file_sha256

if TYPE_CHECKING:
    from mmrobust.weights import Converted
from mmrobust.names import names
from mmrobust.errors import ConfigError


def make_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument('source', help='file or URL of any known source, see docs')
    parser.add_argument('out', help='the checkpoint to write')
    parser.add_argument(
        '--arch', default='auto', help='refuse another network, as convnext-tiny'
    )
    parser.add_argument(
        '--full', action='store_true', help='refuse a file without a classifier head'
    )
    parser.add_argument(
        '--num-classes', type=int, help='refuse a head of another number of classes'
    )
    parser.add_argument(
        '--normalization',
        choices=names()['normalizations'],
        help='of the images, for files that do not tell it: imagenet; unit for images '
        "in [0, 1]; half for images in [-1, 1]; clip for CLIP's",
    )
    parser.add_argument(
        '--activation',
        choices=['quick_gelu', 'gelu'],
        help='of a CLIP tower whose file does not tell it',
    )
    parser.add_argument(
        '--config', help='check that the data preprocessor of this config fits'
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='run the code that is pickled in the file: only for files whose origin '
        'you trust',
    )
    return parser


def main() -> None:
    """Converts and prints."""
    args = make_parser().parse_args()
    if os.path.abspath(args.source) == os.path.abspath(args.out):
        raise ConfigError('OUT must be another file than SOURCE.')
    # With torch behind it, for which --help and mistakes need not wait.
    import mmpretrain.models  # noqa: F401  (registers the classifiers)
    from mmrobust.weights import convert

    converted = convert(
        *(args.source, args.arch, args.full, args.trust),
        *(args.normalization, args.activation),
    )
    _check_classes(converted, args)
    if args.config:
        _check_config(converted, args.config)
    converted.save(args.out)
    _report(converted, args)


def _check_classes(converted: Converted, args: argparse.Namespace) -> None:
    head = converted.architecture.head
    if args.num_classes is None:
        return
    classes = head['num_classes'] if head else 'no'
    if classes != args.num_classes:
        raise ConfigError(
            f'{args.source!r} has {classes} classes and not {args.num_classes}: leave '
            r"out --num-classes, and learn a new head with fresh=[r'head\.'] of "
            'mmrobust.PretrainedClassifier.'
        )


def _check_config(converted: Converted, path: str) -> None:
    from mmrobust.weights.normalization import of_config

    cfg = cli.read_config(path)
    own = of_config(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor'))
    needed = converted.weights.normalization
    if needed is not None and not needed.fits(own):
        raise ConfigError(
            f'the weights need images of {needed} ({needed.origin}), but the '
            f'data_preprocessor of {path!r} has {own}.'
        )


def _report(converted: Converted, args: argparse.Namespace) -> None:
    from mmrobust.weights.sources import PUBLISHED

    weights, found = converted.weights, converted.architecture
    if os.path.isfile(args.source):
        digest = file_sha256(args.source)
        name = PUBLISHED.get(digest or '')
        print(f'sha256         {digest}' + (f' ({name})' if name else ''))
    left_out = ', '.join(f'{part} ({n})' for part, n in weights.left_out.items())
    head = f'{found.head["num_classes"]} classes' if found.head else 'none'
    known = weights.normalization
    size = sum(value.numel() for value in converted.state.values())
    print(f'source         {weights.source}')
    print(f'architecture   {found.name}, feature levels of {list(found.channels)}')
    print(f'head           {head}')
    print(f'tensors        {len(converted.state)} of {size:,} numbers')
    print(f'left out       {left_out or "nothing"}')
    print(f'normalisation  {known} ({known.origin if known else ""})')
    print(f'written        {args.out}, sha256 {file_sha256(args.out)}')
    for kind, text in converted.snippets(args.out).items():
        print(f'\n# For a config of {kind}:\n{text}')


if __name__ == '__main__':
    cli.run(main)
