"""One patch for all images: where it lies, what its file says, and its controls."""

from types import SimpleNamespace

import pytest
import torch
from mmrobust.attacks import UniversalPatch
from mmrobust.errors import ConfigError
from mmrobust.universal import write_perturbation, write_picture

BOXES = torch.tensor([[2.0, 3, 12, 13], [20, 10, 30, 22]])


def texture(side=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, side, side), generator=generator).float()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'patch.png'
    placed = {'size': '6x6', 'place': 'object', 'transform': {}}
    write_picture(path, texture(), {'kind': 'universal-patch', 'patch': placed})
    return str(path)


def shown(attack, boxes=BOXES):
    image = torch.full((3, 30, 34), 50.0)
    oracle = SimpleNamespace(regions=None, boxes=[boxes])
    (found,) = attack.perturb(oracle, [image], torch.Generator().manual_seed(0))
    return found


def test_the_patch_lies_on_every_object_as_it_was_fitted(file):
    expected = torch.full((3, 30, 34), 50.0)
    for left, top in ((4, 5), (22, 13)):  # around the middles of the boxes
        expected[:, top : top + 6, left : left + 6] = texture()
    attack = UniversalPatch(file)
    assert torch.equal(shown(attack), expected)
    assert torch.equal(shown(attack, BOXES[:0]), torch.full((3, 30, 34), 50.0))
    assert attack.describe()['patch']['size'] == '6x6'
    elsewhere = shown(UniversalPatch(file, place='1,2'))
    assert torch.equal(elsewhere[:, 2:8, 1:7], texture())
    assert (elsewhere != 50).any(0).sum() <= 36


def test_controls_lie_where_the_patch_does(file):
    attack = UniversalPatch(file, size='8x5')
    controls = attack.controls()
    assert list(controls) == ['random', 'grey']
    moved = {name: shown(each) != 50 for name, each in controls.items()}
    assert moved['grey'].all(0).sum() == 2 * 8 * 5
    assert not (moved['random'] & ~moved['grey']).any()
    assert shown(controls['grey']).unique().tolist() == [50, 128]
    assert shown(controls['random']).std() > 20
    assert all(each.baseline and not each.controls() for each in controls.values())
    told = [each.describe()['patch'] for each in (attack, *controls.values())]
    assert told[0] == told[1] == told[2]


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / 'u.png'
    write_perturbation(path, texture(), 4, {'kind': 'universal', 'eps': 4})
    with pytest.raises(ConfigError, match='is a universal and no universal-patch'):
        UniversalPatch(str(path))
    with pytest.raises(ConfigError, match='needs a patch: give --patch FILE'):
        UniversalPatch()
