"""Checkpoints that fit, that do not, and that are none."""

import os

import pytest
import tiny
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from mmrobust.weights import check_checkpoint, check_initial_weights, read_checkpoint
from mmrobust.errors import ConfigError


def _model(**backbone):
    torch.manual_seed(0)
    config = tiny.fcos()
    config['backbone'].update(backbone)
    return MODELS.build(ConfigDict(config))


def test_a_fitting_checkpoint_passes(tmp_path):
    model = _model()
    state = {f'module.{k}': v for k, v in model.state_dict().items()}
    state = {k: v for k, v in state.items() if 'num_batches_tracked' not in k}
    torch.save({'state_dict': state}, tmp_path / 'c.pth')
    check_checkpoint(str(tmp_path / 'c.pth'), model)


@pytest.mark.parametrize('damage', ['missing', 'shape'])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, damage):
    model = _model()
    state = dict(model.state_dict())
    if damage == 'missing':
        del state['bbox_head.conv_cls.weight']
    else:
        state['bbox_head.conv_cls.weight'] = torch.zeros(80, 16, 3, 3)
    torch.save({'state_dict': state}, tmp_path / 'c.pth')
    with pytest.raises(ConfigError, match=r'1 of \d+ weights.*conv_cls'):
        check_checkpoint(str(tmp_path / 'c.pth'), model)


class Dangerous:
    """Would run a command when unpickled."""

    def __reduce__(self):
        return os.mkdir, ('should_not_exist',)


def test_files_that_are_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='does not exist'):
        read_checkpoint('none.pth')
    torch.save({'state_dict': {'a': torch.zeros(10000)}}, 'whole.pth')
    whole = (tmp_path / 'whole.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'text.pth').write_text('no checkpoint')
    (tmp_path / 'empty.pth').write_bytes(b'')
    for name in ('cut.pth', 'text.pth', 'empty.pth'):
        with pytest.raises(ConfigError, match=r'damaged|no readable'):
            read_checkpoint(name)
    torch.save([1, 2], 'list.pth')
    with pytest.raises(ConfigError, match='holds a list'):
        read_checkpoint('list.pth')
    torch.save({'state_dict': {}, 'x': Dangerous()}, 'dangerous.pth')
    with pytest.raises(ConfigError, match='pickled code'):
        read_checkpoint('dangerous.pth')
    assert not os.path.exists('should_not_exist')


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.', 'model.'])
def test_a_backbone_is_loaded_completely(tmp_path, prefix):
    path = str(tmp_path / 'b.pth')
    source = _model()
    state = {prefix + k: v + 1 for k, v in source.backbone.state_dict().items()}
    torch.save({'state_dict': state}, path)
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=path)
    model = _model(init_cfg=init)
    model.init_weights()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[prefix + name])


def test_a_partial_backbone_is_refused_unless_it_may_be_fresh(tmp_path):
    path = str(tmp_path / 'b.pth')
    state = dict(_model().backbone.state_dict())
    kept = {k: v + 1 for k, v in state.items() if not k.startswith('layer4')}
    torch.save(kept, path)
    init = dict(type='mmrobust.PretrainedBackbone', checkpoint=path)
    with pytest.raises(ConfigError, match=r"lacks \d+ of the .*'layer4"):
        _model(init_cfg=init).init_weights()
    model = _model(init_cfg={**init, 'fresh': [r'layer4\.']})
    model.init_weights()
    assert torch.equal(model.backbone.conv1.weight, kept['conv1.weight'])


def test_a_download_does_not_run_code_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    # torch.hub downloads nothing that is there already.
    torch.save({'state_dict': {'a': torch.ones(2)}}, cache / 'good.pth')
    torch.save({'state_dict': {}, 'x': Dangerous()}, cache / 'bad.pth')
    address = 'https://example.invalid/'
    loaded = read_checkpoint(address + 'good.pth')
    assert loaded['state_dict']['a'].tolist() == [1, 1]
    before = os.environ.copy()
    with pytest.raises(ConfigError, match=r'pickled code \(\S+\).*not run') as caught:
        read_checkpoint(address + 'bad.pth')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'should_not_exist').exists()
    assert os.environ == before
    read_checkpoint(address + 'bad.pth', trust=True)
    assert (tmp_path / 'should_not_exist').exists()
    with pytest.raises(ConfigError, match="'resnet1' is no name"):
        read_checkpoint('torchvision://resnet1')


def test_initial_weights_are_read_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {}, 'x': Dangerous()}, 'bad.pth')
    torch.save({'state_dict': {'a': torch.ones(1)}}, 'good.pth')

    def model(path):
        init = [dict(type='Pretrained', checkpoint=path, prefix='backbone.')]
        return dict(backbone=dict(type='ResNet', init_cfg=init), heads=[dict(x=1)])

    check_initial_weights(model('good.pth'))
    check_initial_weights(model('torchvision://resnet50'))
    with pytest.raises(ConfigError, match='pickled code'):
        check_initial_weights(model('bad.pth'))
    with pytest.raises(ConfigError, match=r"'gone\.pth' does not exist"):
        check_initial_weights(model('gone.pth'))
    assert not os.path.exists('should_not_exist')
