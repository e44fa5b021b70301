"""Cases of command lines: options of every tool with what nobody should give them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzz_case import HERE, PROJECT, WORDS, Case, misspelt

CONFIG, GOOD = f'{PROJECT}/config.py', f'{PROJECT}/good.pth'
CLASSIFIER = [f'{PROJECT}/classifier.py', f'{PROJECT}/classifier.pth']

# Paths that are no config, no checkpoint and no folder to write to.
PATHS = (
    *('gone', 'gone/gone.pth', '', ' ', f'{PROJECT}/file', f'{PROJECT}/folder'),
    *(f'{PROJECT}/loop', f'{PROJECT}/broken link', '/dev/null', '/proc/version', '.'),
    *(f'{PROJECT}/text.pth', f'{PROJECT}/truncated.pth', f'{PROJECT}/empty.pth'),
    *('x' * 300, 'é漢字.py', 'http://', 'https://127.0.0.1:9/x.pth', 'mmdet::', '::'),
    *('mmdet::fcos/gone.py', 'nopackage::x/y.py', 'nowhere://x', 'torchvision://x'),
    *(f'{PROJECT}/data', f'{PROJECT}/data/annotations.json', f'{PROJECT}/config.py'),
    *('s3://x/y.pth', 'file:///gone', 'open-mmlab://x', 'modelzoo://x', '-x', 'a:b'),
)

# A tool's arguments that work; the options below come after them.
BASES: dict[str, list[list[str]]] = {
    'train.py': [
        [CONFIG],
        [f'{PROJECT}/standard.py'],
        [f'{PROJECT}/standard.py', '--robust', 'free'],
        [f'{PROJECT}/standard.py', '--robust', 'pgd', '--dump', 'robust.py'],
    ],
    'test.py': [
        [CONFIG, GOOD, '--attack', 'pgd', '--num-steps', '1', '--num-images', '2'],
        [CONFIG, GOOD, '--attack', 'fgsm', 'noise', '--check-images', '0'],
        [f'{PROJECT}/standard.py', GOOD],
        [CONFIG, GOOD],
        [*CLASSIFIER, '--attack', 'autoattack', '--num-images', '2'],
        CLASSIFIER,
    ],
    'transfer.py': [
        [CLASSIFIER[0], '--checkpoints', f'0={CLASSIFIER[1]}'],
        [f'{PROJECT}/config.py', '--checkpoints', f'0={GOOD}', f'4={PROJECT}/x.pth'],
    ],
    'transfer_matrix.py': [
        [f'a={CONFIG}:{GOOD}', '--num-images', '2', '--num-steps', '1'],
        [f'a={CONFIG}:{GOOD}', f'b={CONFIG}:{PROJECT}/wider.pth'],
    ],
    'convert_backbone.py': [
        [f'{PROJECT}/resnet18.pth', 'out.pth', '--normalization', 'imagenet']
    ],
    'benchmark.py': [[CONFIG, '--repeats', '1']],
    'coverage.py': [['--family', 'gone'], ['--out', 'x.md', '--family', 'x']],
    'demo.py': [['--cfg-options', 'train_cfg.max_iters=1']],
    'bootstrap.py': [['lint', '--venv', '/dev/null/x']],
}
TOOLS = tuple(BASES)

_FILES = ('--work-dir', '--out', '--show-dir', '--report', '--save-adv', '--dump')
_FILES += ('--json',)
_READ = ('--resume', '--image-ids', '--backbone-weights', '--config', '--logs')
_COMMON = {'--launcher', '--cfg-options', '--local-rank', '--work-dir'}
OPTIONS: dict[str, set[str]] = {
    'train.py': {
        *_COMMON,
        *('--amp', '--auto-scale-lr', '--resume', '--robust', '--eps', '--norm'),
        *('--replays', '--num-steps', '--schedule', '--preset', '--backbone'),
        *('--backbone-weights', '--dump', '--autocast', '--channels-last', '--compile'),
    },
    'test.py': {
        *_COMMON,
        *('--out', '--show-dir', '--wait-time', '--tta', '--attack', '--eps'),
        *('--step-size', '--num-steps', '--norm', '--restarts', '--target'),
        *('--target-class', '--seed', '--num-images', '--space', '--quantize'),
        *('--check-images', '--save-adv', '--report', '--version', '--members'),
        *('--resolutions', '--batch-size', '--image-ids', '--attack-batch-size'),
        *('--autocast', '--channels-last', '--compile'),
    },
    'transfer.py': {
        *_COMMON,
        *('--checkpoints', '--norm', '--modes', '--lr', '--seeds', '--metric'),
    },
    'transfer_matrix.py': {
        *('--sources', '--targets', '--work-dir', '--metric', '--cfg-options'),
        *('--attack', '--norm', '--eps', '--step-size', '--num-steps', '--restarts'),
        *('--target', '--target-class', '--seed', '--num-images'),
    },
    'convert_backbone.py': {
        *('--arch', '--full', '--num-classes', '--normalization', '--config'),
        '--trust',
    },
    'benchmark.py': {
        *('--cfg-options', '--repeats', '--device', '--size', '--batch-size'),
        *('--threads', '--clock', '--sections', '--json', '--check'),
    },
    'coverage.py': {'--family', '--out', '--timeout', '--jobs', '--resume', '--logs'},
    'demo.py': {'--work-dir', '--cfg-options'},
    'bootstrap.py': {'--stack', '--venv', '--torch-index'},
}
_FLAGS = {'--amp', '--auto-scale-lr', '--tta', '--quantize', '--full', '--trust'}
_FLAGS |= {'--autocast', '--channels-last', '--compile', '--check'}

# Words that are right somewhere, so that they are wrong in many ways elsewhere.
_KNOWN = (
    *('pgd', 'fgsm', 'cwa', 'autoattack', 'ensemble', 'square', 'targeted', 'apgd'),
    *('linf', 'l2', 'l1', '4', '4/255', '0.01', '1', '2', '1000000', 'disc', 'next'),
    *('free', 'pgd', 'cwat', 'paper', 'resnet50', 'none', 'input', 'original', 'fast'),
    *('standard', 'apgd-ce', 'apgd-t:n_iter=x', 'square:n_queries=0', 'fixed', 'full'),
    *('pytorch', 'slurm', 'mpi', 'coco/bbox_mAP', 'accuracy/top1', 'cpu', 'cuda:9'),
    *('imagenet', 'convnext-tiny', 'noise', 'vanish', 'mislabel', 'dim', 'rpn'),
)

# Keys that somebody overrides, right ones and wrong ones.
KEYS = (
    *('train_cfg.adversary.eps', 'train_cfg.adversary.replays', 'train_cfg.max_epochs'),
    *('train_cfg.adversary.type', 'train_cfg.adversary.objective', 'train_cfg.type'),
    *('train_cfg.adversary.norm', 'train_cfg.adversary', 'train_cfg', 'test_cfg'),
    *('train_cfg.adversary.warmup_iters', 'train_cfg.adversary.share', 'model'),
    *('train_cfg.adversary.class_weighting', 'train_cfg.adversary.carry', 'data_root'),
    *('test_cfg.attacks.pgd.eps', 'test_cfg.attacks.pgd.num_steps', 'test_cfg.attacks'),
    *('test_cfg.attacks.pgd.norm', 'test_cfg.attacks.pgd.type', 'test_cfg.seed'),
    *('test_cfg.attacks.pgd', 'test_cfg.num_images', 'test_cfg.gt_frame'),
    *('test_cfg.attacks.pgd.step_size', 'test_cfg.attacks.pgd.restarts', 'work_dir'),
    *('test_cfg.attacks.pgd.objective', 'test_cfg.space', 'test_cfg.quantize'),
    *('test_evaluator.type', 'test_evaluator.metric', 'test_evaluator.ann_file'),
    *('test_evaluator', 'test_dataloader', 'train_dataloader', 'optim_wrapper'),
    *('test_dataloader.batch_size', 'test_dataloader.num_workers', 'model.type'),
    *('train_dataloader.batch_size', 'train_dataloader.sampler.type', 'load_from'),
    *('test_dataloader.dataset.ann_file', 'test_dataloader.dataset.type', 'resume'),
    *('test_dataloader.dataset.pipeline', 'train_dataloader.dataset.pipeline'),
    *('test_dataloader.dataset.pipeline.0.type', 'test_dataloader.dataset.pipeline.9'),
    *('test_dataloader.dataset.data_prefix.img', 'test_dataloader.dataset.metainfo'),
    *('train_dataloader.dataset.metainfo.classes', 'optim_wrapper.optimizer.lr'),
    *('optim_wrapper.optimizer.type', 'optim_wrapper.clip_grad.max_norm', 'visualizer'),
    *('optim_wrapper.paramwise_cfg.backbone_lr_mult', 'optim_wrapper.constructor'),
    *('model.backbone.depth', 'model.backbone.type', 'model.neck.in_channels'),
    *('model.bbox_head.num_classes', 'model.bbox_head.loss_cls.type', 'model.test_cfg'),
    *('model.data_preprocessor.mean', 'model.data_preprocessor.type', 'randomness'),
    *('model.neck.out_channels', 'model.bbox_head.strides', 'model.neck.num_outs'),
    *('default_hooks.checkpoint.interval', 'default_hooks.logger', 'default_hooks'),
    *('randomness.seed', 'default_scope', 'log_level', 'custom_imports.imports'),
    *('param_scheduler', 'param_scheduler.0.type', 'env_cfg.mp_cfg', 'launcher'),
    *('custom_hooks', 'auto_scale_lr.enable', 'gone.gone', '', '.', 'a..b', 'model.'),
)


def draw(rng: Random, number: int) -> Case:
    """A case; the kinds come in turns."""
    kinds = (_one_value, _options, _one_value, _paths, _one_value, _repeated, _keys)
    tool = rng.choice(('train.py', 'test.py', 'test.py', *TOOLS))
    return kinds[number % len(kinds)](rng, tool, f'commands-{number}')


def _one_value(rng: Random, tool: str, name: str) -> Case:
    """One option, with any word."""
    option = rng.choice(sorted(OPTIONS[tool]))
    return _case(rng, tool, name, [option, *_words(rng, option)])


def _options(rng: Random, tool: str, name: str) -> Case:
    """Options that need not go together, with words that are right somewhere."""
    chosen = rng.sample(sorted(OPTIONS[tool]), min(3, len(OPTIONS[tool])))
    words = []
    for option in chosen:
        words += [option] if option in _FLAGS else [option, rng.choice(_KNOWN)]
    return _case(rng, tool, name, words)


def _paths(rng: Random, tool: str, name: str) -> Case:
    """A path that is not what it should be, in place of any argument."""
    base = list(rng.choice(BASES[tool]))
    places = [i for i, word in enumerate(base) if PROJECT in word]
    path = rng.choice(PATHS)
    options = sorted({*_FILES, *_READ} & OPTIONS[tool])
    if places and (not options or rng.random() < 0.6):
        place = rng.choice(places)
        before, separator, _ = base[place].partition('=')
        base[place] = f'{before}={path}' if separator else path
        return Case(name, tool, [*base, *_work(tool, base)])
    return Case(name, tool, [*base, rng.choice(options or ['--venv']), path])


def _repeated(rng: Random, tool: str, name: str) -> Case:
    """An option without value, twice, misspelt, unknown; or no arguments at all."""
    option = rng.choice(sorted(OPTIONS[tool]))
    words = rng.choice(
        (
            [option],
            [option, rng.choice(_KNOWN), option, rng.choice(WORDS)],
            [misspelt(rng, option), rng.choice(_KNOWN)],
            [option + '=' + rng.choice(WORDS)],
            [rng.choice(WORDS)],
            ['--', rng.choice(WORDS)],
        )
    )
    if rng.random() < 0.1:
        return Case(name, tool, words if rng.random() < 0.5 else [])
    return _case(rng, tool, name, words, named=False)


def _keys(rng: Random, tool: str, name: str) -> Case:
    """``--cfg-options`` with nonsense."""
    with_options = [t for t in TOOLS if '--cfg-options' in OPTIONS[t]]
    if tool not in with_options:
        tool = rng.choice(('train.py', 'test.py'))
    key = rng.choice(KEYS)
    if rng.random() < 0.2:
        key = misspelt(rng, key)
    value = rng.choice((*WORDS, *_KNOWN, '[', '(1,', '[(1,2),[3]]', '"x"', '1,2,x'))
    word = f'{key}={value}' if rng.random() < 0.95 else key
    base = list(rng.choice(BASES[tool][:2]))
    return Case(name, tool, [*base, '--cfg-options', word, *_work(tool, base)])


def _words(rng: Random, option: str) -> list[str]:
    if option in _FLAGS:
        return []
    if option in (*_FILES, *_READ) and rng.random() < 0.5:
        return [rng.choice(PATHS)]
    return [rng.choice(WORDS) for _ in range(rng.choice((1, 1, 1, 2)))]


def _case(
    rng: Random, tool: str, name: str, words: list[str], named: bool = True
) -> Case:
    base = list(rng.choice(BASES[tool]))
    return Case(name, tool, [*base, *words, *_work(tool, [*base, *words])])


def _work(tool: str, words: list[str]) -> list[str]:
    """A work dir in the case's folder, where none is given."""
    if '--work-dir' not in OPTIONS[tool] or '--work-dir' in words:
        return []
    return ['--work-dir', f'{HERE}/work']


Draw = Callable[[Random, int], Case]
