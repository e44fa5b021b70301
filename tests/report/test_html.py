"""The page says what the JSON says, needs nothing else, and nothing breaks it."""

import base64
import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from made_up_report import CLASSES, NASTY, attack, report
from page_reader import PageReader

from mmrobust.autoattack.report import AutoAttackReport
from mmrobust.report import AttackResult, RobustnessReport


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'pic<1>.png'
    Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(path)
    return path


@pytest.fixture
def written(tmp_path, picture):
    """JSON, Markdown and page of the report, and the page as it was read."""
    path = tmp_path / 'robustness.json'
    gallery = [(f'pgd, image 12 {NASTY}', picture)]
    report().write(path, complete=True, gallery=gallery)
    page = path.with_suffix('.html').read_text()
    markdown = path.with_suffix('.md').read_text()
    return json.loads(path.read_text()), markdown, page, PageReader(page)


def markdown_tables(text):
    tables = [[]]
    for line in text.splitlines():
        if line.startswith('| '):
            cells = line[2:-2].replace(r'\|', '\0').split(' | ')
            tables[-1].append([cell.strip().replace('\0', '|') for cell in cells])
        elif tables[-1]:
            tables.append([])
    return [[rows[0], *rows[2:]] for rows in tables if rows]


def test_the_page_is_well_formed_and_needs_nothing_else(written):
    page = written[3]
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert not {'script', 'link', 'iframe', 'object', 'base'} & set(page.names)
    assert page.addresses
    # What is referred to is there.
    for address in page.addresses:
        assert address[1:] in page.ids or address.startswith('data:image/'), address
    assert page.names.count('img') == 1
    assert page.names.count('svg') == 1
    # What the figures come to is at the top, and a picture keeps its place.
    assert 0 < page.text.index('is left under') < page.text.index('Checks')
    assert re.search(
        r'<img [^>]*loading="lazy"[^>]* width="\d+" height="\d+"', written[2]
    )
    for style in page.styles:
        assert '@import' not in style
        assert 'url(' not in style.replace('url(#', '')


def test_nothing_is_taken_for_html(written):
    page = written[3]
    assert page.text.count(NASTY) >= 7
    assert 'dir/<b>model</b>.pth' in page.text
    assert '</pre></body>' in page.text  # of the config
    assert NASTY not in written[2]
    assert '<script' not in written[2]


def test_figures_and_bars_are_those_of_the_json(written):
    content, _, _, page = written
    (table,) = page.tables['figures']
    passes = [content['benign'], *content['attacks']]
    assert len(table) == 1 + len(passes)
    bars = page.terms['figures']
    for row, bar, each in zip(table[1:], bars, passes, strict=False):
        assert row[0] == bar[0] == each.get('name', 'none (benign)')
        keys = ('coco/bbox_mAP', 'coco/bbox_mAP_50')
        assert row[5:] == [f'{each["metrics"][key]:.3f}' for key in keys]
        values = each['boxes']['mAP']
        assert bar[1] == '{estimate:.3f} [{low:.3f}, {high:.3f}]'.format(**values)
    assert bars[-1] == ('worst case', '0.200 [0.150, 0.300]')
    assert 'With fewer than 50 images these intervals' in page.text
    # Benign, lowest attack, worst case, number of warnings.
    assert page.tiles == ['0.600', '0.250', '0.200', '2']


def test_the_length_of_a_bar_is_its_figure(written):
    """The right edge is the largest upper end: 0.6 + 0.04."""
    styles = written[3].styles
    assert f'width:{100 * 0.25 / 0.64:.2f}%' in styles
    assert f'left:{100 * 0.2 / 0.64:.2f}%;width:{100 * 0.09 / 0.64:.2f}%' in styles
    # Two of nine objects of pgd-eps4 are found, one is misclassified.
    assert f'width:{100 * 2 / 10:.2f}%' in styles


def test_tables_are_those_of_the_json(written):
    content, _, _, page = written
    passes = [content['benign'], *content['attacks']]
    (boxes,), (sizes,) = page.tables['boxes'], page.tables['sizes']
    for row, size, each in zip(boxes[1:], sizes[1:], passes, strict=True):
        errors = each['boxes']['errors']
        counts = [errors[key] for key in ('objects_found', 'missed', 'hallucinated')]
        assert [row[3], row[6], row[7]] == list(map(str, counts))
        known = each['boxes']['sizes']
        assert size[1:] == [f'{known["small"]:.3f}', f'{known["medium"]:.3f}', '-']
    ((_, gap),) = page.tables['pictures']
    assert gap == ['pgd-eps4', '0.250', '0.375', '-0.125', '4.25']
    ((_, first, second),) = page.tables['members-pgd-eps4']
    assert first[1:] == ['20', '8', '5', '0.310', '160', '150', '3.2']
    assert second == ['square', '', '6', '3', '0.250', '600', '0', '7.0']
    (cost,) = page.tables['cost']
    assert ' '.join(cost[2]) == 'pgd-eps4 8 97 80 0 0.0 12.12 10 0 0'
    assert cost[3][5:] == ['12.5', '0', '0', '500', '1.562']
    per_image = content['attacks'][2]['cost']['per_image']
    assert per_image['queries'] == 500
    assert per_image['seconds'] == pytest.approx(12.5 / 8, abs=1e-4)
    assert page.tables['gradients'] == [
        [['attack', 'zero share', 'images'], ['pgd-eps4', '0.125', '8']]
    ]


def test_classes_come_by_their_fall(written):
    """Falls: cat 0.35, the nasty one 0.525, dog 0; one is not in the dataset."""
    content, _, _, page = written
    ((head, *rows),) = page.tables['classes']
    assert head[:3] == ['class', 'none (benign)', 'largest fall']
    assert [row[0] for row in rows] == [NASTY, 'cat', 'dog', 'never seen']
    assert rows[0][1:5] == ['0.700', '0.525', '0.550', '0.175']
    assert rows[2][2] == '0.000'
    assert rows[3][1:] == ['-'] * 5
    for entry in (content['benign'], *content['attacks']):
        assert tuple(entry['boxes']['classes']) == CLASSES


def test_many_attacks_do_not_all_get_a_column():
    """The falls are still those under all of them."""
    made = report()
    made.attacks = [attack(f'a{i}', 0.05 * i) for i in range(12, 0, -1)]
    made.attacks[0].boxes['classes']['dog'] = 0.0
    ((head, *rows),) = PageReader(made.html()).tables['classes']
    assert head[3:] == [f'a{i}' for i in range(8, 0, -1)]
    falls = {row[0]: row[2] for row in rows}
    assert falls['dog'] == '0.400'


def test_markdown_has_the_same_tables(written):
    _, markdown, _, page = written
    tables = {json.dumps(table) for table in markdown_tables(markdown)}
    shared = [
        json.dumps(t)
        for k, found in page.tables.items()
        if k != 'classes'
        for t in found
    ]
    assert len(shared) == len(tables) > 6
    assert set(shared) == tables
    assert NASTY.replace('|', r'\|') in markdown


def test_checks_are_there_in_any_case(written):
    page = written[3]
    assert 'class="note warning" id="checks"' in written[2]
    assert page.text.index('first doubt') < page.text.index('second doubt')
    assert page.text.index('second doubt') < page.text.index('Figures')
    made = report()
    made.checks = []
    made.attacks[2].checks = []
    calm = made.html()
    assert 'No warnings.' in calm
    assert 'note warning' not in calm
    assert 'note warning' in made.html(complete=False)
    assert 'Not complete' in made.html(complete=False)


def test_the_gallery_holds_the_pictures(written, picture):
    page = written[3]
    (address,) = [a for a in page.addresses if a.startswith('data:')]
    kind, content = address.split(',')
    assert kind == 'data:image/png;base64'
    assert base64.b64decode(content) == picture.read_bytes()
    assert f'pgd, image 12 {NASTY}' in page.text
    broken = picture.with_name('broken<i>.png')
    broken.write_bytes(picture.read_bytes()[:40])
    gallery = [('a', broken), ('b', picture.with_name('gone.png'))]
    page = PageReader(report().html(gallery=gallery))
    assert 'The picture broken<i>.png cannot be read.' in page.text
    assert 'The picture gone.png cannot be read.' in page.text
    assert page.problems == []


def test_large_pictures_are_made_smaller(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (700, 3600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / 'large.png')
    page = PageReader(report().html(gallery=[('large', tmp_path / 'large.png')]))
    (address,) = [a for a in page.addresses if a.startswith('data:')]
    assert address.startswith('data:image/jpeg;base64,')
    assert len(address) < (tmp_path / 'large.png').stat().st_size / 5


def test_a_bare_report_has_a_page():
    """The first write comes before the first attack; others have no boxes."""
    bare = RobustnessReport(None, None, None, 0, {}, {'num_images': 2})
    assert PageReader(bare.html(complete=False)).problems == []
    bare.benign = {'accuracy/top1': 80.0, 'x': float('nan')}
    bare.attacks = [attack('a', 0.5, boxes=None)]
    bare.attacks[0].metrics = {'accuracy/top1': 40.0}
    page = PageReader(bare.html())
    assert page.problems == []
    assert page.tiles == ['80.00', '40.00', '0']
    assert page.terms['figures'][1] == ('a', '40.00')
    assert 'boxes' not in page.tables


def test_the_same_report_gives_the_same_page():
    """So that a resumed evaluation ends with the same files."""
    assert report().html() == copy.deepcopy(report()).html()


def test_a_page_that_fails_does_not_end_an_evaluation(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError('no page')

    monkeypatch.setattr(RobustnessReport, 'html', fail)
    path = tmp_path / 'r.json'
    report().write(path, complete=False)
    assert json.loads(path.read_text())['complete'] is False
    assert path.with_suffix('.md').is_file()
    with pytest.raises(ValueError, match='no page'):
        report().write(path, complete=True)
    assert json.loads(path.read_text())['complete'] is True


def test_the_report_of_autoattack_has_a_page():
    made = AutoAttackReport('c.py', None, None, 0, {}, {'num_images': 4})
    made.benign = {'accuracy/top1': 75.0}
    made.labels = {'linf-4': 'linf 4 (4/255)', 'l2-9': 'l2 9 (0.04)'}
    made.resolutions = ['images as the test pipeline of the config']
    threats = {'linf-4': 25.0, 'l2-9': 50.0}
    made.rows = [
        dict(resolution='32', num_images=4, clean=75.0, threats=threats, all_norms=20.0)
    ]
    member = dict(settings={'steps': 9}, attacked=3, accuracy_after=25.0, seconds=0.25)
    settings = {'norm': 'linf', 'eps': 4.0, 'members': {'apgd': member}}
    made.attacks = [AttackResult('autoattack/linf-4', settings, {'top1': 25.0})]
    page = PageReader(made.html())
    assert page.problems == []
    assert page.terms['figures'] == [
        *(('clean', '75.00'), ('linf 4 (4/255)', '25.00')),
        *(('l2 9 (0.04)', '50.00'), ('all norms', '20.00')),
    ]
    assert page.tiles == ['75.00', '25.00', '20.00', '0']
    assert ' '.join(page.tables['figures'][0][1]) == '32 4 75.00 25.00 50.00 20.00'
    members = page.tables['members'][0][1]
    assert members == ['autoattack/linf-4', 'apgd', 'steps 9', '3', '25.00', '0.2']
    text = made.markdown()
    assert text.index('## After each member') < text.index('## Checks')
    assert '| 32 | 4 | 75.00 | 25.00 | 50.00 | 20.00 |' in text
