"""``names.json`` is what the classes say, and what ``--help`` needs instead of them."""

from mmrobust.names import FILE, attack_names, collect, is_corruption, names


def test_the_file_is_what_the_classes_say():
    assert names() == collect(), f'python -m mmrobust.names writes {FILE.name} anew'


def test_kinds_of_names():
    assert {'noise', 'pgd', 'ensemble'} <= set(attack_names())
    assert is_corruption('fog')
    assert is_corruption('blur-corruptions')
    assert not any(map(is_corruption, attack_names()))
