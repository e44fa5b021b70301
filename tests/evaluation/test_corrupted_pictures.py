"""Passes on corrupted pictures, alone and with an attack on top, in the test loop."""

import json
import shutil

import corrupting
import cv2
import numpy as np
import pytest
import tiny
from evaluated import ap, attack_of, images_of
from mmrobust.corruptions import Corruption
from mmrobust.evaluation.attacker import Attacker
from mmrobust.evaluation.corrupted_images import CorruptedImages
from mmrobust.registry import ATTACKS
from mmrobust.utils.seeding import derive_seed

FOG = dict(type='mmrobust.Corruption', name='fog', severity=1)
SNOW = dict(type='mmrobust.Corruption', name='snow', severity=2)
PGD = dict(type='mmrobust.PGD', eps=8, num_steps=1)
QUICK = dict(check_images=0, gallery=0)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    corrupting.put_in_place(monkeypatch)


def corrupted_copy(coco, folder, corruption, seed=0):
    """The dataset, with pictures that were corrupted and written beforehand."""
    shutil.copytree(coco, folder)
    content = json.loads((coco / 'annotations.json').read_text())
    for image in content['images']:
        path = folder / 'images' / image['file_name']
        own = derive_seed(seed, image['id'], 'corruption')
        cv2.imwrite(str(path), corruption(cv2.imread(str(path)), own))
    return folder


def test_passes_are_those_of_corrupted_files(evaluate, coco, tmp_path, monkeypatch):
    """Alone and under attack, by worker processes and after an interruption."""
    attacks = dict(
        snow=SNOW, fog3=dict(FOG, severity=3), fog=FOG, on_fog=dict(FOG, attack=PGD)
    )
    saved = tmp_path / 'saved'
    loader = tiny.loader(coco, test=True, batch_size=2)
    settings = dict(
        overrides=dict(test_dataloader=dict(loader, num_workers=1)),
        save_adv=str(saved),
        num_images=3,
        **QUICK,
    )
    predict, left = Attacker.predict, [3 * 4 + 1]

    def interrupted(self, part):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return predict(self, part)

    monkeypatch.setattr(Attacker, 'predict', interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(attacks, **settings)
    left[0] = 2
    report = evaluate(attacks, **settings)
    assert left[0] == 0
    left[0] = 1000
    folder = corrupted_copy(coco, tmp_path / 'coco', Corruption('fog', 1))
    files = dict(
        type='CocoMetric', ann_file=str(folder / 'annotations.json'), metric='bbox'
    )
    on_files = evaluate(
        dict(pgd=PGD),
        overrides=dict(
            test_dataloader=tiny.loader(folder, test=True), test_evaluator=files
        ),
        report=str(tmp_path / 'files.json'),
        save_adv=str(tmp_path / 'files'),
        num_images=3,
        **QUICK,
    )
    found = {name: attack_of(report, name) for name in attacks}
    assert found['fog']['metrics'] == on_files['benign']['metrics']
    assert found['on_fog']['metrics'] == attack_of(on_files, 'pgd')['metrics']
    assert found['fog']['metrics'] != report['benign']['metrics']
    ours, theirs = images_of(saved / 'on_fog'), images_of(tmp_path / 'files' / 'pgd')
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    # The ball is around the corrupted image, from which the attack moves.
    clean = images_of(saved / 'fog')
    largest = max(np.abs(ours[key] - clean[key]).max() for key in clean)
    assert 7.99 < largest <= 8
    check_means(report, found)


def check_means(report, found):
    aps = {name: ap(each) for name, each in found.items()}
    alone, under = report['corruptions']
    mean = ((aps['fog'] + aps['fog3']) / 2 + aps['snow']) / 2
    assert alone['mPC'] == pytest.approx(mean)
    assert alone['mPC_interval']['estimate'] == pytest.approx(mean)
    assert alone['rPC'] == pytest.approx(mean / ap(report['benign']))
    assert under['attack'] == 'on'
    assert under['mPC'] == pytest.approx(aps['on_fog'])
    # A worst case is of attacks on the pictures as they are.
    assert report['worst_case'] is None
    assert not [text for each in report['attacks'] for text in each['checks']]


def test_of_each_corruption_the_largest_severity_is_drawn():
    attacks = dict(
        fog2=dict(FOG, severity=2), fog1=FOG, snow=SNOW, on=dict(FOG, attack=PGD)
    )
    built = {name: ATTACKS.build(attack) for name, attack in attacks.items()}
    assert CorruptedImages(None, False, 0).drawn(built) == {'fog2', 'snow', 'on'}


def test_original_pixels_and_pictures_of_8_bits(evaluate, coco):
    """The ball is around the corrupted picture there, too."""
    loader = tiny.loader(coco, test=True, scale=(112, 84))
    report = evaluate(
        dict(fog=FOG, on_fog=dict(FOG, attack=PGD)),
        overrides=dict(test_dataloader=loader),
        space='original',
        quantize=True,
        num_images=3,
        **QUICK,
    )
    fog, on_fog = (attack_of(report, name) for name in ('fog', 'on_fog'))
    assert fog['quantized']['radius'] == 0
    assert fog['quantized']['metrics'] == fog['metrics']
    assert on_fog['quantized']['radius'] == 8
