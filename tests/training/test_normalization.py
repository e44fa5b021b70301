"""Both train loops refuse images that are not normalised as the weights need."""

import pytest
import tiny
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import ClassBalancedDataset, RepeatDataset
from mmpretrain.datasets import CIFAR10, CIFAR100, CustomDataset
from mmrobust.weights import check_normalization
from mmrobust.checks.dataset import gives_rgb
from mmrobust.errors import ConfigError

UNIT = dict(mean=[0, 0, 0], std=[255, 255, 255])
ADVERSARY = dict(type='mmrobust.FreeAdversary', eps=4, replays=2)


def _weights(tmp_path, prefix):
    state = MODELS.build(ConfigDict(tiny.fcos()['backbone'])).state_dict()
    state = {prefix + name: value for name, value in state.items()}
    torch.save({'state_dict': state}, tmp_path / 'weights.pth')
    return str(tmp_path / 'weights.pth')


def _model(tmp_path, prefix, init, **preprocessor):
    """A detector whose backbone starts from a file of names with this prefix."""
    config = tiny.fcos()
    config['backbone']['init_cfg'] = dict(init, checkpoint=_weights(tmp_path, prefix))
    config['data_preprocessor'] = dict(config['data_preprocessor'], **preprocessor)
    return config


def _run(build_runner, model, loop, **settings):
    length = dict(max_epochs=1) if 'Epoch' in loop else dict(max_iters=1)
    runner = build_runner(
        model,
        train_cfg=dict(type=f'mmrobust.{loop}', adversary=ADVERSARY, **length),
        val_dataloader=None,
        val_evaluator=None,
        val_cfg=None,
        **settings,
    )
    runner.train()
    return runner.iter


@pytest.mark.parametrize('loop', ['AdvEpochBasedTrainLoop', 'AdvIterBasedTrainLoop'])
def test_a_wrong_normalisation_stops_before_the_first_update(
    build_runner, tmp_path, loop
):
    init = dict(type='mmrobust.PretrainedBackbone')
    with pytest.raises(ConfigError, match=r'need images of .*std \[255, 255, 255\]'):
        _run(build_runner, _model(tmp_path, 'base_model.', init), loop)
    if loop == 'AdvEpochBasedTrainLoop':
        # mmengine's own way of loading says nothing of images.
        init = dict(type='Pretrained', prefix='backbone.')
        model = _model(tmp_path, 'backbone.', init)
    else:
        model = _model(tmp_path, 'base_model.', init, **UNIT)
    assert _run(build_runner, model, loop) > 0


def test_converted_weights_of_load_from_are_checked(build_runner, tmp_path):
    loop = 'AdvEpochBasedTrainLoop'
    content = torch.load(_weights(tmp_path, 'base_model.'))
    known = dict(UNIT, rgb=True)
    content['meta'] = {'mmrobust_weights': {'source': 'x', 'normalization': known}}
    torch.save(content, tmp_path / 'converted.pth')
    converted = str(tmp_path / 'converted.pth')
    with pytest.raises(ConfigError, match=r'the model need images of .*from its meta'):
        _run(build_runner, tiny.fcos(), loop, load_from=converted)
    # The backbone's own weights, of ImageNet's normalisation, are overwritten.
    init = dict(type='mmrobust.PretrainedBackbone', normalization='imagenet')
    model = _model(tmp_path, '', init, **UNIT)
    assert _run(build_runner, model, loop, load_from=converted) > 0


def test_images_that_are_rgb_already_are_not_turned(tmp_path):
    init = dict(type='mmrobust.PretrainedBackbone')
    for turned in (True, False):
        config = _model(tmp_path, 'base_model.', init, **UNIT, bgr_to_rgb=turned)
        model = MODELS.build(ConfigDict(config))
        model.init_weights()
        check_normalization(model, loaded_rgb=not turned)
        with pytest.raises(ConfigError, match=r'RGB .*but.*BGR'):
            check_normalization(model, loaded_rgb=turned)


def test_which_datasets_give_rgb():
    def unloaded(kind):
        return kind.__new__(kind)

    assert gives_rgb(unloaded(CIFAR10))
    assert gives_rgb(unloaded(CIFAR100))
    assert not gives_rgb(unloaded(CustomDataset))
    for wrapper in (RepeatDataset, ClassBalancedDataset):
        wrapped = unloaded(wrapper)
        wrapped.dataset = unloaded(CIFAR10)
        assert gives_rgb(wrapped)
