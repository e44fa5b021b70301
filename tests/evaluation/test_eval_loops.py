"""Attack evaluation inside mmengine's Runner, on a detector that really detects."""

import hashlib
import json
import pickle
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch
from evaluated import images_of
from mmdet.evaluation import CocoMetric, DumpDetResults
from mmdet.structures import DetDataSample
from mmengine.hooks import EMAHook, Hook
from mmengine.structures import InstanceData
from mmrobust.attacks import Attack, RandomNoise
from mmrobust.objective.class_weights import class_weights
from mmrobust.cli import as_sentence
from mmrobust.evaluation.attacker import Attacker
from mmrobust.evaluation.box_analysis import BoxAnalysis
from mmrobust.evaluation.images import EvaluatedImages, left_clean, restrict_metrics
from mmrobust.evaluation.adversarial_images import AdversarialImages
from mmrobust.errors import ConfigError
from mmrobust.registry import ATTACKS
from torch.utils.data import DataLoader


NOISE = dict(type='mmrobust.RandomNoise', eps=8)
PGD = dict(type='mmrobust.PGD', eps=8, num_steps=5)
MAP = 'coco/bbox_mAP'


@pytest.fixture
def evaluate(build_runner, trained):
    """Tests the trained detector; keyword arguments go to the test loop."""

    def run(attacks=None, overrides=None, **loop):
        runner = build_runner(
            load_from=str(trained),
            test_cfg=dict(
                type='mmrobust.AttackTestLoop', attacks=attacks or {}, **loop
            ),
            **(overrides or {}),
        )
        run.runner = runner
        return dict(runner.test())

    return run


def stock_metrics(build_runner, trained, **overrides):
    return dict(build_runner(load_from=str(trained), **overrides).test())


# -------------------------------------------------------------------- figures


def test_eps_0_gives_the_benign_figures(build_runner, trained, evaluate):
    """To the last digit, whatever the norm and the start."""
    attacks = dict(
        noise=dict(type='mmrobust.RandomNoise', eps=0),
        pgd=dict(type='mmrobust.PGD', eps=0, num_steps=1),
        l2=dict(type='mmrobust.PGD', norm='l2', eps=0, num_steps=1),
    )
    metrics = evaluate(attacks)
    stock = stock_metrics(build_runner, trained)
    assert len(stock) >= 6
    assert stock[MAP] > 0.3  # it holds of a detector that finds nothing, too
    # Benign figures under their own names, first: save_best='auto' takes the first.
    assert list(metrics)[: len(stock)] == list(stock)
    for key, value in stock.items():
        assert metrics[key] == value
        for name in attacks:
            assert metrics[f'{name}/{key}'] == value
    assert len(metrics) == 4 * len(stock)


def test_eps_0_gives_the_benign_figures_of_voc(build_runner, trained, coco):
    """VOCMetric takes the ground truth from the samples, in the original frame."""
    overrides = dict(
        # Half the size: boxes in the wrong frame would show.
        test_dataloader=tiny.loader(coco, test=True, scale=(96, 72)),
        test_evaluator=dict(type='VOCMetric', metric='mAP', eval_mode='11points'),
    )
    stock = stock_metrics(build_runner, trained, **overrides)
    assert stock['pascal_voc/mAP'] > 0.2
    pgd = dict(type='mmrobust.PGD', eps=0, num_steps=1)
    runner = build_runner(
        load_from=str(trained),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop',
            attacks=dict(zero=pgd, pgd=dict(PGD, num_steps=2)),
        ),
        **overrides,
    )
    metrics = runner.test()
    for key, value in stock.items():
        assert metrics[key] == metrics[f'zero/{key}'] == value
    assert metrics['pgd/pascal_voc/mAP'] < stock['pascal_voc/mAP']


# ------------------------------------------------------------ what stays as it is


def test_the_model_is_left_as_it_was(build_runner, coco):
    """Parameters, buffers and flags: as after mmengine's own test loop."""
    model = tiny.faster_rcnn()  # draws random numbers in its losses
    model['backbone'].update(frozen_stages=1)
    states = []
    for test_cfg in (
        dict(type='TestLoop'),
        dict(type='mmrobust.AttackTestLoop', attacks=dict(noise=NOISE, pgd=PGD)),
    ):
        loader = tiny.loader(coco, test=True, indices=2)
        runner = build_runner(model, test_cfg=test_cfg, test_dataloader=loader)
        torch.manual_seed(1)
        runner.model.init_weights()
        before = {k: v.clone() for k, v in runner.model.state_dict().items()}
        grads = [p.requires_grad for p in runner.model.parameters()]
        assert len(set(grads)) == 2
        runner.test()
        after = runner.model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert [p.requires_grad for p in runner.model.parameters()] == grads
        assert all(p.grad is None for p in runner.model.parameters())
        states.append([(n, m.training) for n, m in runner.model.named_modules()])
        hooks = [
            len(m._forward_hooks) + len(m._forward_pre_hooks)
            for m in runner.model.modules()
        ]
        assert not any(hooks)
    assert states[0] == states[1]
    assert not any(training for _, training in states[0])


@pytest.mark.parametrize('model', [tiny.fcos, tiny.faster_rcnn])
def test_attacks_leave_the_global_generators_alone(
    build_runner, coco, model, monkeypatch
):
    """A training goes on after a validation as if there had been no attack."""
    attacks = dict(noise=NOISE, pgd=dict(PGD, num_steps=1))
    runner = build_runner(
        model(),
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=attacks),
        test_dataloader=tiny.loader(coco, test=True, indices=2),
    )
    attack = Attacker.attack
    calls = []

    def spied(*args):
        before = generators()
        outcome = attack(*args)
        assert generators() == before
        calls.append(1)
        return outcome

    monkeypatch.setattr(Attacker, 'attack', spied)
    runner.test()
    assert len(calls) == 4


def generators():
    kind, keys, *rest = np.random.get_state()
    return (
        torch.get_rng_state().numpy().tobytes(),
        torch.initial_seed(),
        (kind, keys.tobytes(), *rest),
        random.getstate(),
    )


def test_a_validation_with_attacks_does_not_disturb_training(
    build_runner, trained, coco, tmp_path
):
    """Same weights as with mmengine's validation, and the same best checkpoint."""
    weights, seen = [], []
    attacks = dict(pgd=dict(PGD, num_steps=1))
    for val_cfg in (
        dict(type='ValLoop'),
        dict(type='mmrobust.AttackValLoop', attacks=attacks),
    ):
        runner = build_runner(
            load_from=str(trained),
            train_cfg=dict(
                type='mmrobust.AdvEpochBasedTrainLoop',
                max_epochs=2,
                adversary=dict(type='mmrobust.FreeAdversary', eps=4, replays=2),
            ),
            val_cfg=val_cfg,
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', save_best='auto', rule='greater')
            ),
            train_dataloader=tiny.loader(coco, False, batch_size=3, scale=(64, 48)),
            val_dataloader=tiny.loader(coco, test=True, indices=2),
        )
        seen.append([])
        runner.register_hook(_Metrics(seen[-1]))
        runner.train()
        weights.append(runner.model.state_dict())
        (best,) = (tmp_path / 'work').glob('best_coco_bbox_mAP_*')
        best.unlink()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    for stock, ours in zip(*seen, strict=True):
        assert stock
        assert list(ours) == [*stock, *(f'pgd/{key}' for key in stock)]
        assert {key: ours[key] for key in stock} == stock
    assert len(seen[0]) == 2


class _Metrics(Hook):
    def __init__(self, seen):
        self.seen = seen

    def after_val_epoch(self, runner, metrics=None):
        assert not runner.model.training
        self.seen.append(dict(metrics))


# --------------------------------------------- each image for itself, repeatably


def test_batches_order_and_other_attacks_do_not_matter(evaluate, coco, tmp_path):
    """An image's adversarial example depends on the image, its id and the seed."""
    content = json.loads((coco / 'annotations.json').read_text())
    content['images'] = content['images'][2::-1]
    turned = tmp_path / 'turned.json'
    turned.write_text(json.dumps(content))
    reverse = tiny.loader(coco, test=True)
    reverse['dataset']['ann_file'] = str(turned)
    found, figures = {}, {}
    for name, loader in dict(
        one=tiny.loader(coco, test=True, indices=3),
        # The last batch is smaller than the others.
        two=tiny.loader(coco, test=True, batch_size=2, indices=3),
        after_noise=reverse,
    ).items():
        folder = tmp_path / name
        attacks = dict(noise=NOISE) if name == 'after_noise' else {}
        attacks['pgd'] = dict(PGD, num_steps=2)
        overrides = dict(test_dataloader=loader)
        figures[name] = evaluate(attacks, overrides, save_adv=str(folder))
        found[name] = images_of(folder / 'pgd')
    assert len(found['one']) == 3
    assert figures['after_noise'].items() >= figures['one'].items()
    for name in ('two', 'after_noise'):
        assert found[name].keys() == found['one'].keys()
        for key, image in found['one'].items():
            assert np.array_equal(found[name][key], image), (name, key)


def test_a_seed_repeats_and_another_one_differs(evaluate, coco, tmp_path):
    images, metrics = [], []
    attacks = dict(noise=NOISE, pgd=dict(PGD, num_steps=1))
    overrides = dict(test_dataloader=tiny.loader(coco, test=True, indices=2))
    for number, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(number)
        torch.manual_seed(number)  # no global state may matter
        metrics.append(evaluate(attacks, overrides, seed=seed, save_adv=str(folder)))
        images.append({n: images_of(folder / n) for n in attacks})
    assert metrics[0] == metrics[1]
    for name in attacks:
        for key in images[0][name]:
            assert np.array_equal(images[0][name][key], images[1][name][key])
            assert not np.array_equal(images[0][name][key], images[2][name][key])


def loaded(runner):
    """The loader's images (float32) and samples by id."""
    found = {}
    for batch in runner.test_dataloader:
        for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
            found[str(sample.img_id)] = (image.numpy().astype(np.float32), sample)
    return found


# -------------------------------------------------------------------- subsets


def test_num_images_is_a_fixed_choice_that_the_metric_knows(
    build_runner, trained, evaluate, coco, tmp_path
):
    chosen = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        metrics = evaluate(
            dict(noise=NOISE), seed=seed, num_images=3, save_adv=str(folder)
        )
        chosen.append(sorted(int(key) for key in images_of(folder / 'noise')))
        if number == 0:
            first = metrics
    assert all(len(ids) == 3 for ids in chosen)
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
    # The same figures as for an annotation file with these images alone; the others
    # would count as missed, and nothing of these three is.
    content = json.loads((coco / 'annotations.json').read_text())
    content['images'] = [i for i in content['images'] if i['id'] in chosen[0]]
    content['annotations'] = [
        a for a in content['annotations'] if a['image_id'] in chosen[0]
    ]
    small = tmp_path / 'small.json'
    small.write_text(json.dumps(content))
    loader = tiny.loader(coco, test=True)
    loader['dataset']['ann_file'] = str(small)
    evaluator = dict(type='CocoMetric', ann_file=str(small))
    stock = stock_metrics(
        build_runner, trained, test_dataloader=loader, test_evaluator=evaluator
    )
    assert {key: first[key] for key in stock} == stock
    assert stock['coco/bbox_mAP'] > 0.9


def test_wrapped_datasets_cannot_be_cut(evaluate, coco):
    """mmengine refuses to take a subset of several datasets; say so in a sentence."""
    loader = tiny.loader(coco, test=True)
    loader['dataset'] = dict(type='ConcatDataset', datasets=[loader['dataset']])
    with pytest.raises(ConfigError, match='not possible with ConcatDataset'):
        evaluate(dict(noise=NOISE), dict(test_dataloader=loader), num_images=2)


def test_a_metric_that_cannot_be_restricted_is_refused(evaluate):
    """Scored on its whole file, three of six images would halve the benign figure."""
    evaluate({})
    runner = evaluate.runner
    metric = runner.test_evaluator.metrics[0]
    assert isinstance(metric, CocoMetric)
    del metric.img_ids
    with pytest.raises(ConfigError, match='not possible with CocoMetric'):
        restrict_metrics(runner.test_evaluator, runner.test_dataloader.dataset)


# ------------------------------------------------------------------ saved files


def test_saved_images_are_what_the_network_saw(build_runner, trained, tmp_path):
    folder = tmp_path / 'adv'
    attacks = dict(pgd=dict(PGD, eps=5.5, num_steps=2), noise=NOISE)
    runner = build_runner(
        load_from=str(trained),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop', attacks=attacks, save_adv=str(folder)
        ),
    )
    seen = {}

    class Spy(Hook):
        def after_attack_iter(self, runner, batch_idx, attack, **kwargs):
            inputs = passed[-1]
            for image, output in zip(inputs, kwargs['outputs'], strict=True):
                seen.setdefault(attack, {})[str(output.img_id)] = image.numpy()

    passed = []
    runner.model.data_preprocessor.register_forward_pre_hook(
        lambda module, args: passed.append([i.detach() for i in args[0]['inputs']])
    )
    runner.register_hook(Spy())
    runner.test()
    clean = loaded(runner)
    for name, eps in (('pgd', 5.5), ('noise', 8)):
        saved = images_of(folder / name)
        assert saved.keys() == clean.keys()
        for key, image in saved.items():
            assert image.dtype == np.float32
            assert np.array_equal(image, seen[name][key])
            assert np.abs(image - clean[key][0]).max() <= eps
            assert np.abs(image - clean[key][0]).max() > eps - 0.01
            assert image.min() >= 0
            assert image.max() <= 255
            # The picture for looking at is the same, rounded, and not a JPEG.
            picture = cv2.imread(str(folder / name / f'{key}.png'))
            assert np.array_equal(picture.transpose(2, 0, 1), image.round())
            path = np.load(folder / name / f'{key}.npz')['img_path']
            assert Path(str(path)).name == f'{int(key) - 10:03d}.png'
        description = json.loads((folder / name / 'attack.json').read_text())
        assert description['name'] == name
        assert description['eps'] == eps
    assert not list(folder.rglob('*.tmp*'))


def test_image_ids_may_be_any_text(tmp_path):
    """WIDER FACE's ids are paths; two images never share a file."""
    saver = AdversarialImages(str(tmp_path / 'adv'), 'pgd', {})
    ids = ['a/b', 'a_b', 'a%2Fb', '../../outside', '..', 7, 'x' * 60]
    images = [torch.full((3, 4, 5), float(value)) for value in range(len(ids))]
    saver.save([DetDataSample(metainfo=dict(img_id=i)) for i in ids], images)
    files = list(tmp_path.rglob('*.npz'))
    assert {path.parent for path in files} == {tmp_path / 'adv' / 'pgd'}
    values = sorted(float(np.load(path)['image'].max()) for path in files)
    assert values == list(range(len(ids)))


def test_images_without_an_id_are_not_saved_over_each_other(tmp_path):
    saver = AdversarialImages(str(tmp_path / 'adv'), 'pgd', {})
    with pytest.raises(ConfigError, match="add 'img_id' to the meta_keys"):
        saver.save([DetDataSample()], [torch.zeros(3, 4, 5)])


# -------------------------------------------------------------------- the report


def strict_json(path):
    """JSON proper: no NaN, no Infinity."""

    def refuse(text):
        raise AssertionError(f'{text} is not JSON')

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_report(evaluate, trained, coco, tmp_path):
    metrics = evaluate(dict(noise=NOISE, pgd=PGD), seed=5)
    report = strict_json(tmp_path / 'work' / 'robustness.json')
    assert report['complete'] is True
    assert report['checkpoint'] == str(trained)
    digest = hashlib.sha256(trained.read_bytes()).hexdigest()
    assert report['checkpoint_sha256'] == digest
    assert report['seed'] == 5
    assert report['dataset']['num_images'] == 6
    assert report['dataset']['ann_file'] == str(coco / 'annotations.json')
    assert report['versions']['torch'] == torch.__version__.split('+')[0]
    assert {'mmdet', 'onedl-mmdetection'} & set(report['versions'])
    noise, pgd = report['attacks']
    assert (noise['name'], pgd['name']) == ('noise', 'pgd')
    assert (pgd['norm'], pgd['eps'], pgd['num_steps']) == ('linf', 8, 5)
    assert (pgd['step_size'], pgd['objective'], pgd['restarts']) == (4, 'total', 1)
    assert noise['objective'] is None
    # Six images; noise asks nothing; PGD: clean image, five steps, last iterate.
    assert (noise['cost']['forwards'], noise['cost']['backwards']) == (0, 0)
    assert (pgd['cost']['forwards'], pgd['cost']['backwards']) == (42, 30)
    for entry in (noise, pgd):
        name = entry['name']
        expected = {
            k[len(name) + 1 :]: v
            for k, v in metrics.items()
            if k[: len(name) + 1] == f'{name}/'
        }
        assert entry['metrics'] == pytest.approx(expected)
        assert entry['checks'] == []
    assert report['benign']['metrics'][MAP] == metrics[MAP]
    assert 'AttackTestLoop' in report['config_text']
    text = (tmp_path / 'work' / 'robustness.md').read_text()
    rows = [line for line in text.splitlines() if line.startswith('| pgd | linf')]
    assert len(rows) == 1
    assert f'{metrics[f"pgd/{MAP}"]:.3f}' in rows[0]
    assert 'Not complete' not in text


@ATTACKS.register_module(force=True)
class Crash(Attack):
    """Stops in the middle of its pass, as a full disk or memory would."""

    calls = 0

    def perturb(self, oracle, images, generator):
        Crash.calls += 1
        if Crash.calls == 3:
            raise RuntimeError('out of memory')
        return list(images)


def test_a_crash_leaves_what_is_finished(evaluate, tmp_path):
    Crash.calls = 0
    with pytest.raises(RuntimeError, match='out of memory'):
        evaluate(dict(noise=NOISE, crash=dict(type='mmrobust.Crash'), pgd=PGD))
    report = strict_json(tmp_path / 'work' / 'robustness.json')
    assert report['complete'] is False
    assert [attack['name'] for attack in report['attacks']] == ['noise']
    assert report['attacks'][0]['metrics'][MAP] > 0
    assert report['benign']['metrics'][MAP] > 0
    assert '**Not complete' in (tmp_path / 'work' / 'robustness.md').read_text()
    model = evaluate.runner.model
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@ATTACKS.register_module(force=True)
class Blank(Attack):
    """Leaves nothing to be seen."""

    def perturb(self, oracle, images, generator):
        return [torch.full_like(image, 110.0) for image in images]


def test_no_detection_left_is_zero_with_a_note(evaluate, trained, tmp_path):
    """CocoMetric returns no figures at all then."""
    model = tiny.fcos()
    model['test_cfg']['score_thr'] = 0.25
    blank = dict(type='mmrobust.Blank')
    metrics = evaluate(dict(blank=blank), dict(model=model))
    assert metrics[MAP] > 0.2
    benign = [key for key in metrics if not key.startswith('blank/')]
    assert all(metrics[f'blank/{key}'] == 0 for key in benign)
    report = strict_json(tmp_path / 'work' / 'robustness.json')
    assert report['attacks'][0]['metrics'][MAP] == 0
    assert report['attacks'][0]['checks'] == [
        'no detection is left; missing metrics count as 0'
    ]
    assert 'no detection is left' in (tmp_path / 'work' / 'robustness.md').read_text()


def test_a_detector_that_finds_nothing_is_evaluated_to_the_end(evaluate, tmp_path):
    model = tiny.fcos()
    model['test_cfg']['score_thr'] = 1.0
    evaluate(dict(noise=NOISE), dict(model=model))
    report = strict_json(tmp_path / 'work' / 'robustness.json')
    assert report['complete'] is True
    assert report['benign']['metrics'] == {}
    assert 'the model detects nothing' in report['checks'][0]


def test_predictions_are_dumped_once_per_attack(build_runner, trained, coco, tmp_path):
    """What the benign pass wrote is not overwritten, in none of mmdet's two ways."""
    prefix = tmp_path / 'json' / 'results'
    prefix.parent.mkdir()
    settings = dict(
        load_from=str(trained),
        test_dataloader=tiny.loader(coco, test=True, indices=3),
    )
    attacks = dict(noise=NOISE, pgd=dict(PGD, num_steps=1))
    runner = build_runner(
        **settings, test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=attacks)
    )
    dump = DumpDetResults(out_file_path=str(tmp_path / 'out.pkl'))
    runner.test_evaluator.metrics.append(dump)
    runner.test_evaluator.metrics[0].outfile_prefix = str(prefix)
    runner.test()
    names = ['out.pkl', 'out.noise.pkl', 'out.pgd.pkl']
    dumps = [pickle.loads((tmp_path / name).read_bytes()) for name in names]
    scores = [
        torch.cat([sample['pred_instances']['scores'] for sample in dump])
        for dump in dumps
    ]
    assert [len(dump) for dump in dumps] == [3, 3, 3]
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[1], scores[2])
    # The benign file holds what the stock loop writes.
    stock = build_runner(**settings)
    path = str(tmp_path / 'stock.pkl')
    stock.test_evaluator.metrics.append(DumpDetResults(out_file_path=path))
    stock.test_evaluator.metrics[0].outfile_prefix = str(tmp_path / 'json' / 'stock')
    stock.test()
    expected = pickle.loads(Path(path).read_bytes())
    for ours, theirs in zip(dumps[0], expected, strict=True):
        found = ours['pred_instances']['scores']
        assert torch.equal(found, theirs['pred_instances']['scores'])
    written = sorted(path.name for path in prefix.parent.glob('results*'))
    assert written == [
        'results.bbox.json',
        'results.noise.bbox.json',
        'results.pgd.bbox.json',
    ]
    benign = (prefix.parent / 'results.bbox.json').read_bytes()
    assert benign == (prefix.parent / 'stock.bbox.json').read_bytes()
    # A second evaluation in the same process writes to the same places.
    assert dump.out_file_path == str(tmp_path / 'out.pkl')


# ---------------------------------------------------------------------- hooks


class Count(Hook):
    """How often each hook of a test is called."""

    names = (
        'before_test',
        'before_test_epoch',
        'before_test_iter',
        'after_test_iter',
        'after_attack_iter',
        'after_test_epoch',
        'after_test',
    )

    def __init__(self):
        self.calls = []
        for name in self.names:
            setattr(self, name, self._note(name))

    def _note(self, name):
        return lambda *args, **kwargs: self.calls.append(name)


def test_hooks_fire_once(build_runner, trained):
    """EMAHook swaps weights there, LoggerHook writes its file there."""
    attacks = dict(noise=NOISE, other=NOISE)
    runner = build_runner(
        load_from=str(trained),
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=attacks, num_images=2),
    )
    count = Count()
    runner.register_hook(count)
    runner.test()
    expected = ['before_test', 'before_test_epoch']
    expected += ['before_test_iter', 'after_test_iter'] * 2
    expected += ['after_attack_iter'] * 4
    expected += ['after_test_epoch', 'after_test']
    assert count.calls == expected


@pytest.mark.parametrize(('quantize', 'passes'), [(False, 1 + 2 + 2), (True, 8)])
def test_predictions_are_scored_in_the_pass_that_makes_them(
    evaluate, monkeypatch, quantize, passes
):
    """One more pass for the choice of an ensemble, and one for pictures of 8 bits."""
    stock, made = DataLoader.__iter__, []
    monkeypatch.setattr(
        DataLoader, '__iter__', lambda own: made.append(1) or stock(own)
    )
    noise = dict(type='mmrobust.RandomNoise')
    both = dict(type='mmrobust.Ensemble', members=dict(noise=noise))
    attacks = dict(noise=NOISE, other=noise, both=both)
    evaluate(attacks, quantize=quantize, num_images=2)
    assert len(made) == passes


def test_the_ema_weights_are_the_attacked_ones(build_runner, trained, monkeypatch):
    """EMAHook puts its weights in before the passes and takes them out after all."""
    runner = build_runner(
        load_from=str(trained),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop', attacks=dict(noise=NOISE), num_images=2
        ),
        custom_hooks=[dict(type='EMAHook')],
    )
    biases = []

    def note(*args, **kwargs):
        biases.append(float(runner.model.bbox_head.conv_cls.bias[0]))

    class Shift(Hook):
        """Makes the averaged weights different from the model's."""

        def before_test(self, runner):
            note()
            (ema,) = (h for h in runner._hooks if isinstance(h, EMAHook))
            ema.ema_model.module.bbox_head.conv_cls.bias.data[0] += 1

    hook = Shift()
    hook.after_test_iter = hook.after_attack_iter = hook.after_test = note
    runner.register_hook(hook)
    attack = Attacker.attack
    monkeypatch.setattr(Attacker, 'attack', lambda *a: (note(), attack(*a))[1])
    runner.test()
    own = biases[0]
    # 2 images benign, 2 times attack and prediction, and the end.
    assert biases == [own] + [pytest.approx(own + 1)] * 6 + [own]


# ------------------------------------------------------------------- bad data


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        # The loss, and so the attack, would be that of an image without objects.
        (lambda data: data['pipeline'].pop(2), 'loads no annotations'),
        (
            lambda data: data.update(metainfo=dict(classes=('person', 'car', 'dog'))),
            '6 images and no box at all',
        ),
    ],
)
def test_data_without_boxes_are_refused(evaluate, coco, change, sentence):
    loader = tiny.loader(coco, test=True)
    change(loader['dataset'])
    with pytest.raises(ConfigError, match=sentence):
        evaluate(dict(pgd=PGD), dict(test_dataloader=loader))


def test_equal_ids_and_a_second_modality(evaluate, tmp_path):
    """Files are named by ids; what else the model gets is said to stay clean."""

    class Twice(list):
        metainfo = dict(classes=())

        def get_data_info(self, index):
            return dict(img_id=7)

    loader = DataLoader(Twice([0, 1, 2]), collate_fn=list)
    assert EvaluatedImages(loader, whole_batches=True).equal_ids == 2
    (text,) = left_clean(dict(inputs=[], data_samples=[], points=[]))
    assert text.startswith('the model also gets points of every batch')
    assert left_clean(dict(inputs=[], data_samples=[])) == []


def test_without_attacks_the_loop_is_mmengines(evaluate, build_runner, trained, coco):
    """It then needs no annotations either."""
    loader = tiny.loader(coco, test=True)
    del loader['dataset']['pipeline'][2]
    overrides = dict(test_dataloader=loader)
    assert evaluate({}, overrides) == stock_metrics(build_runner, trained, **overrides)


@pytest.mark.parametrize(
    ('loop', 'sentence'),
    [
        (dict(gt_frame='resized'), "gt_frame='resized' is unknown"),
        (dict(num_images=0), 'num_images=0 must be a whole number'),
        (dict(num_images=1.5), 'num_images=1.5 must be a whole number'),
        (dict(num_images=7), 'num_images=7 is more than the 6 images there are'),
        (dict(space='disk'), "space='disk' is unknown"),
        (dict(attacks=dict(benign=PGD)), "no attack can be called 'benign'"),
        (dict(attack_batch_size=0), 'attack_batch_size=0 must be a whole number'),
        (dict(attack_batch_size=None), 'attack_batch_size=None must be a whole'),
        (dict(report='robustness.txt'), r"report='robustness.txt' must be a .json"),
        (
            dict(attacks=dict(x=dict(type='mmrobust.PGD', eps=-4))),
            'eps=-4 is negative',
        ),
        (
            dict(attacks=dict(x=dict(type='mmrobust.PGD', norm='l0'))),
            "norm='l0' is unknown",
        ),
    ],
)
def test_impossible_settings_are_refused(evaluate, loop, sentence):
    with pytest.raises(ConfigError, match=sentence):
        evaluate(**{'attacks': dict(pgd=PGD), **loop})


# Pictures that cameras and annotators leave behind.
ODD = {
    'gray.png': np.full((70, 90), 120, np.uint8),
    'row.png': np.full((1, 60, 3), 120, np.uint8),
    'column.png': np.full((50, 1, 3), 120, np.uint8),
    'alpha.png': np.full((60, 64, 4), 120, np.uint8),
}


def odd_dataset(root, names):
    tiny.make_coco(root, num_images=3)
    content = json.loads((root / 'annotations.json').read_text())
    for number, name in enumerate(names):
        height, width = ODD[name].shape[:2]
        cv2.imwrite(str(root / 'images' / name), ODD[name])
        image_id = 100 + number
        content['images'].append(
            dict(id=image_id, file_name=name, height=height, width=width)
        )
        content['annotations'].append(
            dict(
                id=1000 + number,
                image_id=image_id,
                category_id=1,
                bbox=[0, 0, width, height],
                area=width * height,
                iscrowd=0,
            )
        )
    (root / 'annotations.json').write_text(json.dumps(content))
    return root


def on(root, **kwargs):
    """Overrides that put the test on another dataset."""
    loader = {**tiny.loader(root, test=True), **kwargs}
    evaluator = dict(type='CocoMetric', ann_file=str(root / 'annotations.json'))
    return dict(test_dataloader=loader, test_evaluator=evaluator)


def test_odd_images_are_evaluated(evaluate, tmp_path):
    root = odd_dataset(tmp_path / 'odd', list(ODD))
    overrides, adv = on(root, batch_size=7), str(tmp_path / 'adv')
    pgd = dict(PGD, num_steps=1)
    metrics = evaluate(dict(pgd=pgd), overrides, save_adv=adv)
    assert f'pgd/{MAP}' in metrics
    saved = images_of(tmp_path / 'adv' / 'pgd')
    clean = loaded(evaluate.runner)
    assert len(saved) == 7
    for key, image in saved.items():
        assert image.shape == clean[key][0].shape
        assert np.isfinite(image).all()
        assert 0 < np.abs(image - clean[key][0]).max() <= 8


@pytest.mark.parametrize(
    ('damage', 'workers'), [('text', 0), ('half', 0), ('half', 1), ('empty', 0)]
)
def test_a_damaged_image_among_good_ones_is_named(evaluate, tmp_path, damage, workers):
    """The evaluation stops; figures on fewer images would pass for the whole set's."""
    root = tiny.make_coco(tmp_path / 'damaged', num_images=3)
    victim = root / 'images' / '001.png'
    content = victim.read_bytes()
    victim.write_bytes(
        dict(text=b'no image', half=content[: len(content) // 2], empty=b'')[damage]
    )
    try:
        evaluate(dict(pgd=PGD), on(root, num_workers=workers))
    except Exception as error:
        sentence = as_sentence(error)
    else:
        sentence = 'the evaluation went on'
    if damage == 'empty':  # OpenCV's error does not say which file
        assert sentence == (
            'an image file is empty: look for files of 0 bytes among the images.'
        )
    else:
        assert sentence == f'image {victim} cannot be decoded: replace or remove it.'
    report = tmp_path / 'work' / 'robustness.json'
    assert not report.exists() or strict_json(report)['complete'] is False


# ----------------------------------------------------------------- class weights


@pytest.mark.parametrize('there', [True, False])
def test_cwa_counts_the_training_set_if_it_is_there(
    build_runner, trained, coco, tmp_path, there
):
    """Weights from the evaluated set would tell the attack about it."""
    root = tmp_path / 'train'
    if there:
        tiny.make_coco(root, num_images=9, seed=4)
    cwa = dict(type='mmrobust.PGD', eps=4, num_steps=1, objective='cwa')
    runner = build_runner(
        load_from=str(trained),
        train_dataloader=tiny.loader(root, test=False),
        test_cfg=dict(type='mmrobust.AttackTestLoop', attacks=dict(cwa=cwa)),
    )
    metrics = runner.test()
    counted = root if there else coco
    content = json.loads((counted / 'annotations.json').read_text())
    labels = [a['category_id'] for a in content['annotations']]
    counts = [labels.count(category) for category in (1, 2, 3)]
    weights = runner.test_loop.attacks['cwa'].objective.class_weights
    assert torch.equal(weights, class_weights(counts))
    notes = strict_json(tmp_path / 'work' / 'robustness.json')['checks']
    text = 'class weights of cwa are those of the evaluated set'
    assert [note[: len(text)] for note in notes] == ([] if there else [text])
    assert metrics[f'cwa/{MAP}'] < metrics[MAP]


def test_built_attacks_are_taken_as_they_are(build_runner, trained):
    runner = build_runner(load_from=str(trained))
    runner._test_loop = dict(
        type='mmrobust.AttackTestLoop', attacks=dict(noise=RandomNoise(eps=3))
    )
    assert f'noise/{MAP}' in runner.test()
    assert runner.test_loop.attacks['noise'].threat.eps == 3


def test_an_objective_that_the_model_lacks_is_named_before_the_benign_pass(
    build_runner, trained, tmp_path
):
    """Not after the hours of the passes before it."""
    runner = build_runner(
        load_from=str(trained),
        test_cfg=dict(
            type='mmrobust.AttackTestLoop',
            attacks=dict(first=NOISE, mask=dict(PGD, objective=['loss_mask'])),
        ),
    )
    predictions = []
    stock = type(runner.model).test_step

    def count(self, data):
        predictions.append(1)
        return stock(self, data)

    runner.model.test_step = count.__get__(runner.model)
    with pytest.raises(ConfigError, match="no loss named 'loss_mask'"):
        runner.test()
    assert not predictions
    assert not list(tmp_path.rglob('robustness.json'))


# ------------------------------------------------------------- boxes of all passes


def test_boxes_of_all_passes_are_analysed(evaluate, coco, tmp_path):
    attacks = {
        'noise': dict(type='mmrobust.RandomNoise', eps=8),
        'pgd': dict(type='mmrobust.PGD', eps=4, num_steps=3),
        'vanish': dict(type='mmrobust.PGD', eps=4, num_steps=3, objective='vanish'),
    }
    metrics = evaluate(attacks, report=str(tmp_path / 'r.json'))
    report = json.loads((tmp_path / 'r.json').read_text())
    benign = report['benign']['boxes']
    passes = {attack['name']: attack['boxes'] for attack in report['attacks']}
    # CocoMetric rounds to three digits.
    assert benign['mAP']['estimate'] == pytest.approx(metrics[MAP], abs=5e-4)
    annotations = json.loads((coco / 'annotations.json').read_text())['annotations']
    for name, boxes in passes.items():
        found = boxes['mAP']['estimate']
        assert found == pytest.approx(metrics[f'{name}/{MAP}'], abs=5e-4)
        assert boxes['mAP']['low'] <= found <= boxes['mAP']['high']
        fall = benign['mAP']['estimate'] - found
        assert boxes['drop']['estimate'] == pytest.approx(fall, abs=1e-12)
        errors = boxes['errors']
        objects = ('objects_found', 'objects_misclassified', 'objects_mislocalised')
        assert sum(errors[key] for key in (*objects, 'missed')) == len(annotations)
    # What vanishing is for.
    assert passes['vanish']['errors']['missed'] > benign['errors']['missed']
    worst = report['worst_case']
    lowest = min(boxes['mAP']['estimate'] for boxes in (benign, *passes.values()))
    assert worst['mAP'] <= worst['per_image_mAP']
    assert worst['mAP'] <= lowest
    assert sum(worst['images'].values()) == 6
    text = (tmp_path / 'r.md').read_text()
    assert f'**{worst["mAP"]:.3f} [{worst["interval"]["low"]:.3f}, ' in text
    assert f'| pgd | {passes["pgd"]["mAP"]["estimate"]:.3f} [' in text


def test_square_reads_the_detections(evaluate, tmp_path):
    """Without gradients, and only from what the detector gives out."""
    attacks = {'square': dict(type='mmrobust.Square', eps=16, num_queries=30)}
    path = tmp_path / 'deep' / 'er' / 'r.json'
    metrics = evaluate(attacks, num_images=3, report=str(path))
    report = json.loads(path.read_text())
    assert report['worst_case'] is None
    (square,) = report['attacks']
    assert square['cost']['backwards'] == 0
    assert square['cost']['forwards'] == 3 * 31
    assert square['objective'] == 'detections'
    assert metrics[f'square/{MAP}'] < metrics[MAP]


def detections(img_id, boxes, scores):
    sample = DetDataSample(metainfo=dict(img_id=img_id))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes),
        scores=torch.tensor(scores),
        labels=torch.zeros(len(boxes), dtype=torch.long),
    )
    return sample


class OneBox:
    """Two images, an object in each."""

    metainfo = dict(classes=('thing',))

    def __len__(self):
        return 2

    def get_data_info(self, index):
        instance = dict(bbox=[10.0, 10, 50, 50], bbox_label=0, ignore_flag=0)
        return dict(img_id=index, height=64, width=64, instances=[instance])


def test_strange_detections_do_not_end_an_evaluation():
    """An attack can make a detector give NaN; hours of results must survive it."""
    analysis = BoxAnalysis(OneBox())
    good = [[10.0, 10, 50, 50]]

    def finish(name, *outputs):
        found = [analysis.read(output) for output in outputs]
        return analysis.finish(name, [each for each in found if each is not None])

    clean = [detections(0, good, [0.9]), detections(1, good, [0.9])]
    benign = finish('benign', *clean)
    assert benign is not None
    assert benign['mAP']['estimate'] == pytest.approx(1)
    nan = [*good, [float('nan'), 10, 50, 50]]
    strange = [detections(0, nan, [0.9, 0.95]), detections(1, good, [float('nan')])]
    broken = finish('broken', *strange)
    assert broken is not None
    # The second image's only detection counts as none.
    assert broken['errors']['objects_found'] == broken['errors']['missed'] == 1
    assert broken['errors']['hallucinated'] == 0
    rotated = [[10.0, 10, 50, 50, 0.3]]
    assert finish('rotated', detections(0, rotated, [0.9]), clean[1]) is None
    other = [detections(0, good, [0.9]), detections(1, good, [0.9])]
    other[1].pred_instances.labels += 7
    assert finish('labels', *other) is None
    assert len(analysis.problems) == 3
    # Scores of trials neither end it: an id that is unknown, a class that is.
    assert analysis.score(detections(9, good, [0.9])) == 0
    assert analysis.score(other[1]) == 0
    assert analysis.score(clean[0]) == pytest.approx(0.9)
    assert 'not finite' in analysis.problems[0]
    assert 'label outside 0 to 0' in analysis.problems[2]
    assert set(analysis.tables) == {'benign', 'broken'}
