"""The pictures of attacked images in the report's page."""

import base64
import re
from collections import Counter
from functools import partial

import cv2
import numpy as np
import pytest
from evaluated import attack_of
from mmrobust.evaluation import visualization
from mmrobust.evaluation.attacker import Attacker


ATTACKS = dict(
    noise=dict(type='mmrobust.RandomNoise', eps=8),
    pgd=dict(type='mmrobust.PGD', eps=8, num_steps=1),
)
ENSEMBLE = dict(type='mmrobust.Ensemble', eps=8, members=dict(one=ATTACKS['pgd']))


@pytest.fixture
def evaluate(evaluate):
    return partial(evaluate, num_images=3)


def shown(page):
    """Titles and pictures of a page's gallery."""
    text = page.read_text()
    if 'id="gallery"' not in text:
        return []
    section = text.split('id="gallery"')[1].split('</section>')[0]
    figures = re.findall(r'<figure.*?</figure>', section, flags=re.S)
    found = []
    for figure in figures:
        (content,) = re.findall(r'base64,([^"\']+)', figure)
        data = np.frombuffer(base64.b64decode(content), np.uint8)
        (title,) = re.findall(r'<figcaption[^>]*>(.*?)</figcaption>', figure)
        found.append((title, cv2.imdecode(data, cv2.IMREAD_COLOR)))
    return found


@pytest.fixture
def stopping(monkeypatch):
    """Lets an evaluation be interrupted at an attack on an image; counts them."""
    stock, calls = Attacker.attack, Counter[str]()
    last = [None]

    def attack(*args):
        if calls['made'] == last[0]:
            raise KeyboardInterrupt
        calls['made'] += 1
        return stock(*args)

    monkeypatch.setattr(Attacker, 'attack', attack)

    def set_last(number):
        calls.clear()
        last[0] = number
        return calls

    return set_last


@pytest.mark.parametrize('resume', [True, False])
def test_the_first_images_under_every_attack(evaluate, tmp_path, resume):
    attacks = {**ATTACKS, 'both': ENSEMBLE}
    evaluate(attacks, gallery=2, resume=resume, save_adv=str(tmp_path / 'adv'))
    pictures = dict(shown(tmp_path / 'r.html'))
    first, second = (path.stem for path in sorted(tmp_path.glob('adv/pgd/*.png'))[:2])
    assert list(pictures) == [
        f'{name}, image {key}' for key in (first, second) for name in attacks
    ]
    saved = cv2.imread(str(tmp_path / 'adv' / 'pgd' / f'{first}.png'))
    height, width = saved.shape[:2]
    # Clean, attacked and difference below a title, three times as large.
    found = pictures[f'pgd, image {first}']
    assert found.shape == (3 * height + 28, 3 * (3 * width + 6), 3)
    attacked = found[28::3, 3 * width + 6 : 6 * width + 6 : 3]
    # But for the boxes that are drawn on it.
    assert (np.abs(attacked.astype(int) - saved) <= 1).all(2).mean() > 0.5
    assert not list(tmp_path.glob('*.records'))


def test_an_evaluation_that_goes_on_has_them_too(evaluate, stopping, tmp_path):
    evaluate(ATTACKS, gallery=2)
    whole = shown(tmp_path / 'r.html')
    for stop in (1, 3):  # in the first attack, and in the second
        stopping(stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(ATTACKS, gallery=2)
    calls = stopping(None)
    evaluate(ATTACKS, gallery=2)
    assert calls['made'] == 6 - 1 - 3
    found = shown(tmp_path / 'r.html')
    assert len(found) == 4
    for (title, picture), (same, expected) in zip(found, whole, strict=True):
        assert title == same
        assert np.array_equal(picture, expected), title


def test_missing_pictures_are_drawn_again(evaluate, stopping, tmp_path):
    """Killed between a record and its picture; or asked for more pictures."""
    first = evaluate(ATTACKS, gallery=2)
    titles = [title for title, _ in shown(tmp_path / 'r.html')]
    stopping(5)
    with pytest.raises(KeyboardInterrupt):
        evaluate(ATTACKS, gallery=1)
    (drawn,) = tmp_path.glob('r.records/pgd-*/pictures/*.png')
    drawn.unlink()
    calls = stopping(None)
    second = evaluate(ATTACKS, gallery=2)
    # The first image under pgd, and the second under every attack.
    assert calls['made'] == 6 - 5 + 3
    assert [title for title, _ in shown(tmp_path / 'r.html')] == titles
    for name in ATTACKS:
        one, other = attack_of(first, name), attack_of(second, name)
        assert one['metrics'] == other['metrics']
        assert one['cost']['forwards'] == other['cost']['forwards']


def test_pictures_of_other_settings_are_not_shown(evaluate, stopping, tmp_path):
    evaluate(dict(pgd=dict(ATTACKS['pgd'], eps=2)), gallery=1)
    ((_, expected),) = shown(tmp_path / 'r.html')
    for eps in (2, 16):
        stopping(2)
        with pytest.raises(KeyboardInterrupt):
            evaluate(dict(pgd=dict(ATTACKS['pgd'], eps=eps)), gallery=1)
    calls = stopping(None)
    evaluate(dict(pgd=dict(ATTACKS['pgd'], eps=2)), gallery=1)
    assert calls['made'] == 1
    ((_, found),) = shown(tmp_path / 'r.html')
    assert np.array_equal(found, expected)


def test_a_picture_that_cannot_be_drawn_is_named_and_left_out(
    evaluate, tmp_path, monkeypatch
):
    """An evaluation of hours does not end for it."""
    stock, said = visualization.attack_picture, []

    def fail_for_pgd(*args):
        if args[-1] == 'pgd':
            raise ValueError('no such font')
        return stock(*args)

    monkeypatch.setattr(visualization, 'attack_picture', fail_for_pgd)
    monkeypatch.setattr(visualization, 'print_log', lambda text, **_: said.append(text))
    evaluate(ATTACKS, gallery=1)
    ((title, _),) = shown(tmp_path / 'r.html')
    assert title.startswith('noise, image ')
    image = title.removeprefix('noise, ')
    assert said == [f'{image} under pgd cannot be drawn: no such font']
