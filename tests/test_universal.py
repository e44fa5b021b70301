"""Files of universal perturbations, and the canvas that stretches them over images."""

import hashlib
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmrobust.attacks import Universal
from mmrobust.errors import ConfigError
from mmrobust.threat import ThreatModel
from mmrobust.universal import Canvas, read_perturbation, write_perturbation
from PIL import Image
from torch.nn.functional import interpolate, pad


def drawn(*shape, seed=0, eps=7.6):
    """A perturbation that fills its ball, up to the edge."""
    generator = torch.Generator().manual_seed(seed)
    return ((torch.rand(shape, generator=generator) * 2 - 1) * 1.1 * eps).clamp(
        -eps, eps
    )


@pytest.fixture
def file(tmp_path):
    """Writes a perturbation of radius 7.6; settings come on top."""

    def write(**settings):
        path = tmp_path / 'universal.png'
        write_perturbation(
            path, drawn(3, 9, 12), 7.6, {'kind': 'universal', 'eps': 7.6, **settings}
        )
        return path

    return write


def test_a_file_holds_the_perturbation_inside_its_ball(file):
    path, values = file(seed=3), drawn(3, 9, 12)
    stored = read_perturbation(path)
    # What rounding would carry out of the ball is rounded towards 0.
    assert torch.equal(stored.values, values.round().clamp(-7, 7))
    assert stored.settings['seed'] == 3
    # Any other reader sees it, in OpenCV's order of the channels.
    seen = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(int) - 128
    assert np.array_equal(seen, stored.values.permute(1, 2, 0).numpy())
    assert stored.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    beside = json.loads(path.with_suffix('.json').read_text())
    assert beside == {'sha256': stored.sha256, **stored.settings}


def test_a_file_names_as_many_images_as_there_are(file):
    """COCO's, of which Pillow would not read the hashes in one piece."""
    names = ' '.join(f'{number:016x}' for number in range(120_000))
    assert read_perturbation(file(images=names)).settings['images'] == names


def test_foreign_files_are_read_and_others_refused(tmp_path, file):
    path = tmp_path / 'foreign.png'
    picture = np.full((5, 4, 3), 128, np.uint8)
    picture[1, 2] = 125, 128, 140
    cv2.imwrite(str(path), picture)
    assert Universal(str(path)).threat.eps == 12
    (doubt,) = Universal(str(path)).doubts([])
    assert 'does not say what it was fitted on' in doubt
    for mode, ending, message in (
        ('RGBA', 'png', 'of mode RGBA.*without an alpha channel'),
        ('L', 'png', 'of mode L'),
        ('P', 'png', 'of mode P'),
        ('RGB', 'jpg', 'is a JPEG file'),
    ):
        Image.new(mode, (4, 4)).save(tmp_path / f'x.{ending}')
        with pytest.raises(ConfigError, match=message):
            read_perturbation(tmp_path / f'x.{ending}')
    with pytest.raises(ConfigError, match='settings an eps of 3: it was changed'):
        read_perturbation(file(eps=3))
    with pytest.raises(ConfigError, match='is a universal-patch and no universal'):
        read_perturbation(file(kind='universal-patch'))


@pytest.mark.parametrize('size', [(9, 12), (31, 17), (4, 5), (1, 40)])
def test_a_canvas_keeps_the_radius_and_spares_padding(size):
    """As torch's interpolation, which is another implementation."""
    values, image = drawn(3, 9, 12), pad(torch.full((3, *size), 120.0), (3, 2, 4, 5))
    picture = pad(torch.ones(1, *size, dtype=torch.bool), (3, 2, 4, 5))
    threat = ThreatModel(eps=7.6).within(picture, image)
    moved = Canvas((9, 12)).added(values, image, threat) - image
    assert moved.abs().max() <= 7.6 + 1e-4
    assert not moved[:, ~picture[0]].any()
    expected = interpolate(values[None], size, mode='bilinear')[0]
    assert (moved[:, picture[0]] - expected.flatten(1)).abs().max() < 1e-4


def test_the_attack_stays_in_the_ball_and_its_control_is_as_large(file):
    path = str(file())
    images = [torch.full((3, 20, 15), 3.0), torch.rand(3, 7, 8) * 255]
    attack, control = Universal(path), Universal(path, random=True)
    oracle = SimpleNamespace(regions=None)
    for each in (attack, control):
        found = each.perturb(oracle, images, torch.Generator())
        for image, moved in zip(images, found, strict=True):
            assert each.threat.distance(image, moved) <= 7.6
            assert moved.min() >= 0
            assert moved.max() <= 255
    assert set(control.values.unique().tolist()) == {-7, 7}
    assert (attack.baseline, control.baseline) == (False, True)
    assert attack.describe()['file'] == path
    with pytest.raises(ConfigError, match='images have 1 channels'):
        attack.perturb(oracle, [torch.zeros(1, 4, 4)], torch.Generator())


def test_images_are_known_by_what_is_in_their_files(tmp_path, file):
    """Not by name: training and test images of the demo have the same names."""
    contents = [b'one', b'two', b'three']
    for folder, order in (('train', contents[:2]), ('test', contents[:0:-1])):
        (tmp_path / folder).mkdir()
        for number, content in enumerate(order):
            (tmp_path / folder / f'{number}.png').write_bytes(content)

    def dataset(*names):
        class Images(list):
            def get_data_info(self, index):
                return {'img_path': str(tmp_path / self[index])}

        return Images(names)

    hashes = [hashlib.sha256(each).hexdigest()[:16] for each in contents[:2]]
    attack = Universal(str(file(images=' '.join(hashes))))
    assert attack.doubts(dataset('test/0.png')) == []
    (text,) = attack.doubts(dataset('test/0.png', 'test/1.png'))
    assert 'was fitted on 1 of the 2 images' in text
    with pytest.raises(ConfigError, match='fitted on all of the images'):
        attack.doubts(dataset('train/0.png', 'train/1.png'))
    assert Universal(attack.stored.path, random=True).doubts(dataset()) == []
