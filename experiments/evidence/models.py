"""Configs of the study: base configs with a run's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grid import CLASSIFIER_RADII, EPS, PICTURE, Scale
from mmengine.config import Config, ConfigDict

HERE = Path(__file__).resolve().parent
DEMO = HERE.parents[1] / 'configs' / 'demo'

_STAGES = [32, 64, 128]
_CONVNEXT = {
    'arch': {'depths': [2, 2, 4], 'channels': _STAGES},
    'layer_scale_init_value': 1.0,
    'drop_path_rate': 0.0,
    'gap_before_final_norm': False,
}
# Backbones of three levels of stride 4, 8 and 16; keys of classifier and detector.
BACKBONES: dict[str, dict[str, Any]] = {
    'resnet18': {
        'type': 'mmdet.ResNet',
        'depth': 18,
        'base_channels': 32,
        'num_stages': 3,
        'strides': (1, 2, 2),
        'dilations': (1, 1, 1),
        'norm_cfg': {'type': 'BN', 'requires_grad': True},
        'norm_eval': False,
        'init_cfg': {'type': 'Kaiming', 'layer': 'Conv2d'},
    },
    'convnext': {'type': 'mmpretrain.ConvNeXt', **_CONVNEXT},
    'convnext-convstem': {'type': 'mmrobust.ConvNeXtConvStem', **_CONVNEXT},
    'swin': {
        'type': 'mmpretrain.SwinTransformer',
        'arch': {
            'embed_dims': 32,
            'depths': [2, 2, 4],
            'num_heads': [2, 4, 8],
        },
        'img_size': PICTURE,
        'window_size': 4,
        'drop_path_rate': 0.0,
        'pad_small_map': True,
    },
}
CHANNELS = {
    'resnet18': [32, 64, 128],
    'convnext': _STAGES,
    'convnext-convstem': _STAGES,
    'swin': _STAGES,
}
# Layers that a classifier has not: norms of the levels below its last.
_FRESH = {'convnext': [r'norm[0-1]\.'], 'swin': [r'norm[0-1]\.']}
_FRESH['convnext-convstem'] = _FRESH['convnext']


def classifier_config(
    settings: dict[str, Any], data: dict[str, Any], root: Path
) -> Config:
    """A classifier of the upstream task.

    Args:
        settings: of the run.
        data: content of ``data.json``.
        root: folder of the data.
    """
    cfg = Config.fromfile(HERE / 'configs' / 'classification.py')
    name = settings['backbone']
    cfg.model.backbone = ConfigDict(BACKBONES[name], out_indices=(2,))
    cfg.model.head.in_channels = CHANNELS[name][-1]
    set_pictures(cfg, data, root, settings['classes'])
    if settings['heavy']:
        cfg.train_dataloader.dataset.pipeline = cfg.heavy
        cfg.model.update(cfg.heavy_model)
        cfg.custom_hooks = cfg.heavy_hooks
        # As many of the last updates count, relative to the length, as with the
        # thousands of updates that the usual momentum is made for.
        cfg.custom_hooks[0].momentum = 10 / max(settings['updates'], 20)
    adversary: dict[str, Any] = {'type': 'mmrobust.NoAdversary'}
    if settings['eps']:
        adversary = {
            'type': 'mmrobust.APGDAdversary',
            'eps': settings['eps'],
            'num_steps': 2,
        }
    cfg.train_cfg.adversary = ConfigDict(adversary)
    forget_flips(cfg, data)
    set_length(cfg, settings['updates'])
    return cfg


def forget_flips(cfg: Config, data: dict[str, Any]) -> None:
    """A mirrored digit is none."""
    if data['source'] == 'digits':
        for step in cfg.train_dataloader.dataset.pipeline:
            if step['type'] == 'RandomFlip':
                step['prob'] = 0.0


def set_pictures(
    cfg: Config, data: dict[str, Any], root: Path, classes: str = 'all'
) -> None:
    """Gives a classifier's config its pictures.

    Args:
        cfg: the config; changed.
        data: content of ``data.json``.
        root: folder of the data.
        classes: ``'all'``, or the ``'first'`` or ``'last'`` half of them.
    """
    names = data['classes']
    half = len(names) // 2
    suffix = '' if classes == 'all' else f'_{classes}'
    names = {'all': names, 'first': names[:half], 'last': names[half:]}[classes]
    for key, split in (('train_dataloader', 'train'), ('test_dataloader', 'test')):
        cfg[key].dataset.update(
            data_root='',
            ann_file=str(root / f'upstream_{split}{suffix}.txt'),
            data_prefix=str(Path(data['pictures']) / split),
            metainfo={'classes': list(names)},
        )
    cfg.model.head.num_classes = len(names)
    cfg.model.data_preprocessor.num_classes = len(names)


def detector_config(
    settings: dict[str, Any], scale: Scale, data: dict[str, Any], root: Path
) -> Config:
    """A detector of the downstream task.

    Args:
        settings: of the run.
        scale: sizes.
        data: content of ``data.json``.
        root: folder of the data.
    """
    head, name = settings['head'], settings['backbone']
    own = HERE / 'configs' / f'{head}.py'
    cfg = Config.fromfile(own if own.exists() else DEMO / f'standard_{head}.py')
    cfg.merge_from_dict(Config.fromfile(HERE / 'configs' / 'detection.py').to_dict())
    levels = (2,) if head == 'dn-detr' else (1, 2)
    cfg.model.backbone = ConfigDict(BACKBONES[name], out_indices=levels)
    cfg.model.neck.in_channels = [CHANNELS[name][level] for level in levels]
    for key, split in (('train_dataloader', 'train'), ('test_dataloader', 'test')):
        cfg[key].dataset.update(
            data_root=str(root / 'detection'),
            ann_file=f'{split}.json',
            data_prefix={'img': f'{split}/'},
            metainfo={'classes': list(data['classes'])},
        )
    cfg.train_dataloader.batch_size = scale.detector_batch
    if head == 'mask-rcnn':
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            for step in loader.dataset.pipeline:
                if step['type'] == 'LoadAnnotations':
                    step['with_mask'] = True
        cfg.test_evaluator.metric = ['bbox', 'segm']
    cfg.test_evaluator.ann_file = str(root / 'detection' / 'test.json')
    rate = settings['lr']
    if settings['optimizer'] == 'sgd':
        cfg.optim_wrapper.optimizer = ConfigDict(
            type='SGD', lr=rate, momentum=0.9, weight_decay=1e-4
        )
    cfg.optim_wrapper.optimizer.lr = rate
    cfg.optim_wrapper.paramwise_cfg.backbone_lr_mult = settings['backbone_lr']
    cfg.train_cfg.adversary = ConfigDict(adversary_of(settings['method']))
    cfg.test_cfg.update(num_images=scale.num_images, attack_batch_size=10)
    forget_flips(cfg, data)
    set_length(cfg, settings['updates'])
    return cfg


def adversary_of(method: str) -> dict[str, Any]:
    """The training method's config."""
    return {
        'standard': {'type': 'mmrobust.NoAdversary'},
        'free': {
            'type': 'mmrobust.FreeAdversary',
            'eps': EPS,
            'replays': 4,
            'carry': 'run',
        },
        'pgd': {'type': 'mmrobust.PGDAdversary', 'eps': EPS, 'num_steps': 2},
    }[method]


def start_from(
    cfg: Config, backbone: str, checkpoint: Path, inputs: str = 'detector'
) -> None:
    """Lets the backbone start from the weights of a classifier of the study."""
    fresh = _FRESH.get(backbone, []) if inputs == 'detector' else []
    cfg.model.backbone.init_cfg = ConfigDict(
        type='mmrobust.PretrainedBackbone', checkpoint=str(checkpoint)
    )
    if fresh:
        cfg.model.backbone.init_cfg.fresh = fresh


def set_length(cfg: Config, updates: int) -> None:
    """Sets the number of updates: a warm-up, then half a cosine."""
    warm = max(1, min(50, updates // 10))
    cfg.train_cfg.max_iters = updates
    cfg.param_scheduler = [
        {
            'type': 'LinearLR',
            'start_factor': 0.01,
            'by_epoch': False,
            'begin': 0,
            'end': warm,
        },
        {
            'type': 'CosineAnnealingLR',
            'by_epoch': False,
            'begin': warm,
            'end': max(updates, warm + 1),
            'eta_min': 1e-5,
        },
    ]


def autoattack_config(cfg: Config, norm: str, sides: list[int], scale: Scale) -> None:
    """Lets a classifier's config measure robust accuracy at some resolutions."""
    # As AutoAttack's standard version does it.
    larger = ',use_largereps=1' if norm == 'l1' else ''
    members = (
        f'apgd-ce:n_iter={scale.apgd_steps}',
        f'apgd-t:n_iter={scale.apgd_steps},n_target_classes={scale.target_classes}',
    )
    cfg.test_cfg = ConfigDict(
        type='mmrobust.AutoAttackTestLoop',
        threats=[{'norm': norm, 'eps': CLASSIFIER_RADII[norm]}],
        attacks=[member + larger for member in members],
        resolutions=sides,
        num_images=scale.attacked_pictures,
        shard_size=50,
    )


def transfer_config(
    side: int, scale: Scale, data: dict[str, Any], root: Path
) -> Config:
    """The second task of a backbone: the other classes, few pictures of them.

    Args:
        side: pictures are reduced to this side before they are enlarged, pixels.
        scale: sizes.
        data: content of ``data.json``.
        root: folder of the data.
    """
    settings = {
        'backbone': 'resnet18',
        'heavy': False,
        'eps': 0,
        'classes': 'last',
        'updates': scale.transfer,
    }
    cfg = classifier_config(settings, data, root)
    cfg.model.backbone.pop('init_cfg')
    reduce = [{'type': 'Resize', 'scale': (side, side), 'interpolation': 'area'}]
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        pipeline = list(loader.dataset.pipeline)
        loader.dataset.pipeline = [pipeline[0], *reduce, *pipeline[1:]]
    train, test = cfg.train_dataloader, cfg.test_dataloader
    few, epochs = _few(scale)
    train.sampler = ConfigDict(type='DefaultSampler', shuffle=True)
    train.batch_size = 50
    train.dataset.indices = few
    cfg.val_dataloader = ConfigDict(
        {**test, 'dataset': {**train.dataset, 'indices': list(range(few, 2 * few))}}
    )
    cfg.val_dataloader.dataset.pipeline = test.dataset.pipeline
    cfg.val_evaluator = cfg.test_evaluator
    cfg.val_cfg = ConfigDict(type='ValLoop')
    cfg.test_cfg = ConfigDict(type='TestLoop')
    test.dataset.indices = 1000
    cfg.train_cfg = ConfigDict(
        type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs
    )
    cfg.optim_wrapper.optimizer = ConfigDict(
        type='SGD', lr=0.02, momentum=0.9, weight_decay=5e-4
    )
    cfg.optim_wrapper.pop('paramwise_cfg')
    cfg.param_scheduler = [
        {'type': 'CosineAnnealingLR', 'T_max': epochs, 'convert_to_iter_based': True}
    ]
    cfg.default_hooks = ConfigDict(
        checkpoint={'type': 'CheckpointHook', 'interval': epochs, 'max_keep_ckpts': 1},
        logger={'type': 'LoggerHook', 'interval': 10},
    )
    cfg.log_processor.by_epoch = True
    return cfg


def _few(scale: Scale) -> tuple[int, int]:
    """Pictures of a transfer run, and how often they are shown."""
    few = 50 if scale.transfer < 20 else 1000
    return few, max(1, scale.transfer * 50 // few)
