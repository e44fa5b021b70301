"""Builds the site of docs/; a link, page or name that is missing is an error."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / 'build' / 'docs'  # docs_dir of mkdocs.yml
SOURCES = ROOT / 'build' / 'source'  # where mkdocs.yml lets mkdocstrings look
# Pages outside of docs/ that are part of the site.
OTHERS = ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md')
FOLDERS = ('configs', 'experiments')
_FENCED = re.compile(r'(^```.*?^```)', re.M | re.S)
# A link to another file: its path, and the anchor in it.
_LINK = re.compile(r'\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)')
_ROLE = re.compile(r':(?:class|func|meth|attr|data|mod|exc):`[~.]*([^`]+)`')
_EXAMPLE = re.compile(r'^( *)>>> .*(?:\n\1\S.*)*', re.M)
_TOOL = re.compile(r'^## tools/(\w+\.py)$', re.M)


def sources() -> dict[Path, Path]:
    """Returns the site's pages: where each lies in the checkout, by its place in it.

    Pages of docs/ lie at the top of the site, all others as in the checkout.
    """
    found = sorted((ROOT / 'docs').rglob('*.md'))
    found += [ROOT / name for name in OTHERS]
    found += [path for top in FOLDERS for path in sorted(ROOT.glob(f'{top}/**/*.md'))]
    return {_in_site(path): path for path in found}


def nav_pages() -> list[str]:
    """Returns the pages that mkdocs.yml's navigation names."""
    text = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')
    return list(_leaves(yaml.safe_load(text)['nav']))


def links(path: Path) -> list[Path]:
    """Returns the files that a page links to, which may be missing."""
    text = _FENCED.sub('', path.read_text(encoding='utf-8'))
    found = [match[1] for match in _LINK.finditer(text)]
    return [Path(os.path.normpath(path.parent / link)) for link in found]


def put_pages(target: Path) -> None:
    """Writes the pages, and the files that they link to, into an empty folder."""
    shutil.rmtree(target, ignore_errors=True)
    for place, source in sources().items():
        page = target / place
        page.parent.mkdir(parents=True, exist_ok=True)
        for linked in links(source):
            if linked.is_file() and linked.suffix != '.md':
                copy = target / _in_site(linked)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(linked, copy)
        parts = _FENCED.split(source.read_text(encoding='utf-8'))
        parts[::2] = [_LINK.sub(_Moved(source, place), part) for part in parts[::2]]
        page.write_text(''.join(parts), encoding='utf-8')


def put_sources(target: Path) -> None:
    """Copies the package, with roles and examples in docstrings as Markdown's code."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted((ROOT / 'mmrobust').rglob('*.py')):
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = _ROLE.sub(r'`\1`', path.read_text(encoding='utf-8'))
        text = _EXAMPLE.sub(r'\1```python\n\g<0>\n\1```', text)
        copy.write_text(text, encoding='utf-8')


def add_help(page: Path) -> None:
    """Puts what each tool says with ``--help`` under its heading."""

    def told(match: re.Match) -> str:
        return f'{match[0]}\n\n```text\n{help_of(ROOT / "tools" / match[1])}```'

    page.write_text(_TOOL.sub(told, page.read_text(encoding='utf-8')), encoding='utf-8')


def help_of(script: Path) -> str:
    """Returns the help of a tool, without starting a process of its own."""

    class Read(Exception):  # noqa: N818
        pass

    def caught(parser: argparse.ArgumentParser, *args: object) -> None:
        raise Read(parser.format_help())

    wide = patch.dict(os.environ, COLUMNS='88')
    here = patch.object(sys, 'argv', [script.name])
    with wide, here, patch.object(argparse.ArgumentParser, 'parse_args', caught):
        try:
            runpy.run_path(str(script), run_name='__main__')
        except Read as found:
            return str(found)
    raise RuntimeError(f'{script} reads no command line')


class _Moved:
    """Links of a page, as they have to be where it lies in the site."""

    def __init__(self, source: Path, place: Path) -> None:
        self.source, self.place = source, place

    def __call__(self, match: re.Match) -> str:
        target = _in_site(Path(os.path.normpath(self.source.parent / match[1])))
        link = Path(os.path.relpath(target, self.place.parent)).as_posix()
        return f']({link}{match[2] or ""})'


def _in_site(path: Path) -> Path:
    place = path.relative_to(ROOT)
    if place.name == 'README.md' and len(place.parts) == 1:
        return Path('overview.md')  # a README would be the index of its folder
    return Path(*place.parts[1:]) if place.parts[0] == 'docs' else place


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [leaf for each in inner for leaf in _leaves(each)]


def main() -> int:
    """Builds; returns the exit status of the builder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    if find_spec('zensical') is None:
        print(
            'error: the extra docs is missing; it needs Python 3.11.', file=sys.stderr
        )
        return 2
    put_pages(PAGES)
    put_sources(SOURCES)
    add_help(PAGES / 'reference' / 'command-line.md')
    command = [sys.executable, '-m', 'zensical', 'build', '--strict', '--clean']
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == '__main__':
    sys.exit(main())
