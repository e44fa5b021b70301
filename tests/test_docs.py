"""The pages of the site, without building it: links, navigation, the reference."""

import inspect
import json
import re
import runpy
from importlib import import_module
from pathlib import Path

import mmrobust
import pytest
from mmrobust import api

ROOT = Path(__file__).resolve().parents[1]
SITE = runpy.run_path(str(ROOT / 'tools' / 'build_docs.py'))
PAGES = SITE['sources']()


def anchors(path):
    """The anchors of a page's headings."""
    text = SITE['_FENCED'].sub('', path.read_text(encoding='utf-8'))
    titles = re.findall(r'^#+ (.*)', text, re.M)
    plain = [re.sub(r'[^\w\s-]', '', title).strip().lower() for title in titles]
    return {re.sub(r'[\s-]+', '-', title) for title in plain}


@pytest.mark.parametrize('place', PAGES, ids=str)
def test_links_lead_somewhere(place):
    source = PAGES[place]
    assert [str(path) for path in SITE['links'](source) if not path.exists()] == []
    text = SITE['_FENCED'].sub('', source.read_text(encoding='utf-8'))
    wrong = []
    for link, anchor in re.findall(r'\]\(([^)\s#:]*)#([^)\s]+)\)', text):
        page = (source.parent / link).resolve() if link else source
        if page.suffix == '.md' and anchor not in anchors(page):
            wrong.append(f'{link}#{anchor}')
    assert wrong == []


def test_the_navigation_has_every_page():
    """Of which ``mkdocs.yml`` knows by name only."""
    named = SITE['nav_pages']()
    assert sorted(named) == sorted(path.as_posix() for path in PAGES)


def described():
    """What the pages of the API are made of."""
    pages = sorted((ROOT / 'docs' / 'reference').glob('*.md'))
    return re.findall(r'^::: (\S+)', ''.join(p.read_text() for p in pages), re.M)


def test_the_reference_has_every_public_name():
    """Of the top level and of ``mmrobust.api``, where some of them are from."""
    names = {f'mmrobust.{name}' for name in mmrobust.__all__ if name[0] != '_'}
    own = set(api.__all__) - set(mmrobust.__all__)
    names |= {f'mmrobust.api.{name}' for name in own}
    assert names - set(described()) == set()


@pytest.mark.parametrize('name', described())
def test_what_the_reference_names_is_there_and_explained(name):
    module, _, attribute = name.rpartition('.')
    found = getattr(import_module(module), attribute)
    assert inspect.getdoc(found)
    if inspect.isclass(found):
        kinds = (property, classmethod, type(anchors))
        own = [
            k for k, v in vars(found).items() if k[0] != '_' and isinstance(v, kinds)
        ]
        assert [k for k in own if not inspect.getdoc(getattr(found, k))] == []


def test_the_reference_has_every_tool():
    tools = sorted((ROOT / 'tools').glob('*.py'))
    reading = {p.name for p in tools if 'cli.run(main)' in p.read_text()}
    page = (ROOT / 'docs' / 'reference' / 'command-line.md').read_text()
    assert reading == set(re.findall(r'^## tools/(\S+)', page, re.M))


def test_the_notebook_is_small_and_its_code_whole():
    """What it does is run by experiments/tutorials."""
    path = ROOT / 'docs' / 'tutorials' / 'from-python.ipynb'
    text = path.read_text(encoding='utf-8')
    assert len(text) < 300_000
    cells = json.loads(text)['cells']
    code = [''.join(each['source']) for each in cells if each['cell_type'] == 'code']
    compile('\n'.join(code), path.name, 'exec')
    assert all(each['execution_count'] for each in cells if 'outputs' in each)
    for cell in cells:
        if cell['cell_type'] == 'markdown':
            links = SITE['_LINK'].findall(''.join(cell['source']))
            assert all((path.parent / link).is_file() for link, _ in links)
