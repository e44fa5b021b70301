"""Faster losses and gradients: as the plain ones, and nothing else is touched."""

import pytest
import tiny
import torch
from evaluated import ap, attack_of
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper
from mmrobust.batch import float_images
from mmrobust.frame import attack_samples
from mmrobust.objective.classifier import make_oracle
from mmrobust.utils.acceleration import Acceleration
from mmrobust.training import FreeAdversary, PGDAdversary
from mmrobust.evaluation import attack_evaluation, preparation
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective, loss_mode
from torch import nn
from updates import assert_same_state, make_batch, make_model, sgd

# Compiles without a C++ compiler, and goes through forward and backward graphs.
AOT = dict(backend='aot_eager')
# Runs the traced operations as they are, so that results are the same bit by bit.
EAGER = dict(backend='eager')
ALL = dict(autocast='bfloat16', channels_last=True, compile=EAGER)
PGD = dict(type='mmrobust.PGD', eps=8, num_steps=3)


@pytest.fixture(autouse=True)
def _one_thread(_quiet_and_repeatable):
    """Threads wait for each other longer than these tiny detectors compute."""
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A backend of torch.compile that counts what it is asked to compile."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def shallow(family='fcos'):
    """With one stage of its backbone: every layer takes long to compile."""
    model = tiny.FAMILIES[family]()
    model['backbone'].update(
        num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)
    )
    model['neck'].update(in_channels=[model['backbone']['base_channels']])
    return model


def build(family):
    torch.manual_seed(0)
    compiled = family in ('fcos', 'dab_detr')
    config = shallow(family) if compiled else tiny.FAMILIES[family]()
    model = MODELS.build(ConfigDict(config))
    model.init_weights()
    return tiny.filled(model).eval()


def answer(model, speed, batch):
    """Loss and gradients of a batch, as an attack asks for them."""
    samples = attack_samples(batch['data_samples'], 'cpu', 'input')
    oracle = make_oracle(model, batch, samples, Objective())
    images = float_images(batch, 'cpu')
    with speed.prepared(model), loss_mode(model), speed.on(model):
        torch.manual_seed(0)
        return oracle.value_and_grad(images)


def correlation(first, second):
    return float(nn.functional.cosine_similarity(first.ravel(), second.ravel(), dim=0))


# ------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    ('family', 'options'),
    [
        ('fcos', dict(channels_last=True)),
        ('fcos', dict(compile=EAGER)),
        ('faster_rcnn', dict(channels_last=True)),
        ('dab_detr', dict(channels_last=True, compile=EAGER)),
    ],
)
def test_layout_and_compiling_leave_the_gradient(family, options):
    model, batch = build(family), make_batch([(64, 96), (96, 64)], 0)
    values, grads = answer(model, Acceleration(), batch)
    found, fast = answer(model, Acceleration(**options), batch)
    torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-4)
    for mine, plain in zip(fast, grads, strict=True):
        assert plain.abs().max() > 0
        scale = float(plain.abs().max())
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize('family', ['fcos', 'dab_detr'])
def test_bfloat16_rounds_the_gradient(family):
    model, batch = build(family), make_batch([(64, 96)], 0)
    values, (plain,) = answer(model, Acceleration(), batch)
    found, (fast,) = answer(model, Acceleration(autocast='bfloat16'), batch)
    assert found.dtype == fast.dtype == torch.float32
    assert not torch.equal(fast, plain)  # or nothing was computed in it
    torch.testing.assert_close(found, values, rtol=0.05, atol=0.05)
    assert correlation(fast, plain) > 0.8


def test_bfloat16_is_for_the_network_only():
    """Neither preprocessing nor what the attack makes of the gradient is rounded."""
    model, batch = build('fcos'), make_batch([(64, 96)], 0)
    speed, seen = Acceleration(autocast='bfloat16'), {}
    model.data_preprocessor.register_forward_hook(
        lambda module, args, output: seen.update(
            inside=torch.is_autocast_enabled('cpu')
        )
    )
    model.backbone.register_forward_hook(
        lambda module, args, output: seen.update(features=output[0].dtype)
    )
    with speed.on(model):
        answer(model, speed, batch)
        outside = torch.ones(2, 2) @ torch.ones(2, 2)
    assert seen == {'inside': False, 'features': torch.bfloat16}
    assert outside.dtype == torch.float32


# ----------------------------------------------------------- what stays as it was


def test_predictions_are_the_stock_ones():
    model, batch = build('fcos'), make_batch([(64, 96)], 0)
    model.test_cfg['score_thr'] = 0.0
    counting = Counting()
    speed = Acceleration(autocast='bfloat16', compile=dict(backend=counting))

    def predict():
        (found,) = model.test_step(batch)
        return torch.cat(
            [found.pred_instances.bboxes.ravel(), found.pred_instances.scores]
        )

    plain = predict()
    with speed.prepared(model), speed.on(model):
        assert torch.equal(predict(), plain)
    assert len(plain) > 0
    assert counting.graphs == 0


def test_weights_keep_names_and_values():
    model, batch = build('fcos'), make_batch([(64, 96)], 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    speed = Acceleration(**ALL)
    with speed.prepared(model), loss_mode(model):
        with speed.on(model):
            data = model.data_preprocessor(batch, False)
            model(**data, mode='loss')
        weight = model.backbone.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        inside = model.state_dict()
    assert list(inside) == list(before)
    for key, value in before.items():
        assert torch.equal(inside[key], value), key
    assert weight.is_contiguous()
    for module in (model, model.backbone, model.neck):
        assert 'forward' not in vars(module)
    stock = MODELS.build(ConfigDict(shallow()))
    stock.load_state_dict(inside, strict=True)


def test_images_of_all_sizes_compile_once_for_each_use():
    model, counting = build('fcos'), Counting()
    speed = Acceleration(compile=dict(backend=counting))
    graphs = []
    with speed.prepared(model), speed.on(model):
        for size in ((64, 96), (96, 64), (128, 96)):
            batch = make_batch([size], 0)
            samples = attack_samples(batch['data_samples'], 'cpu', 'input')
            oracle = LossOracle(model, batch, samples, Objective())
            with loss_mode(model):
                oracle.value_and_grad(float_images(batch, 'cpu'))
                oracle.value(float_images(batch, 'cpu'))
            model.train()
            model(**model.data_preprocessor(batch, True), mode='loss')
            graphs.append(counting.graphs)
    # Backbone and neck: gradient, value and update, of which some torch share one.
    assert graphs == [graphs[0]] * 3
    assert 5 <= graphs[0] <= 6


# -------------------------------------------------------------------------- training


def updated(adversary, speed, wrap=lambda m: m):
    """The model after two updates."""
    torch.manual_seed(0)
    model = make_model(ConfigDict(shallow()))
    own = adversary.objective.terms is not None
    with speed.prepared(model, keeps_graph=own):
        wrapped, wrapper = wrap(model), sgd(model)
        for iteration in range(2):
            batch = make_batch([(64, 96), (96, 64)], iteration)
            with speed.on(model):
                adversary.train_step(wrapped, wrapper, batch, iteration)
    return model


def test_a_compiled_update_is_the_same():
    plain = updated(FreeAdversary(replays=2), Acceleration())
    found = updated(FreeAdversary(replays=2), Acceleration(compile=EAGER))
    assert_same_state(found, plain)


def test_two_backward_passes_go_through_compiled_graphs():
    def adversary():
        return FreeAdversary(eps=4, replays=2, objective=['loss_cls'])

    plain = updated(adversary(), Acceleration()).state_dict()
    found = updated(adversary(), Acceleration(compile=AOT)).state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def learns(module):
    """Not in inner steps, in which weights are frozen."""
    return any(weight.requires_grad for weight in module.parameters())


def test_inner_attack_and_update_are_accelerated():
    model, seen = make_model(), []
    model.backbone.register_forward_hook(
        lambda module, args, output: seen.append(
            (learns(module), output[0].dtype, output[0].is_contiguous())
        )
    )
    speed = Acceleration(autocast='bfloat16', channels_last=True)
    with speed.prepared(model), speed.on(model):
        PGDAdversary(eps=4, num_steps=2).train_step(
            model, sgd(model), make_batch([(64, 96)], 0), 0
        )
    assert seen == [(flag, torch.bfloat16, False) for flag in (False, False, True)]
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


@pytest.fixture
def gloo(tmp_path):
    """A distributed run of one process."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', world_size=1, rank=0
    )
    yield
    torch.distributed.destroy_process_group()


def in_ddp(model):
    return MMDistributedDataParallel(model, broadcast_buffers=False, device_ids=None)


def test_accelerated_updates_go_through_ddp(gloo):
    plain = updated(FreeAdversary(replays=2), Acceleration(**ALL))
    wrapped = updated(FreeAdversary(replays=2), Acceleration(**ALL), in_ddp)
    assert_same_state(wrapped, plain)


def test_ddp_knows_the_layout(build_runner, gloo, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')  # as launchers do
    adversary = dict(type='mmrobust.FreeAdversary', replays=2)
    runner = build_runner(
        train_cfg=dict(
            type='mmrobust.AdvIterBasedTrainLoop',
            max_iters=2,
            adversary=adversary,
            speed=dict(channels_last=True),
        ),
        model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
    )
    loop = runner.build_train_loop(runner._train_loop)
    model, runner._distributed = runner.model, True
    before = runner.model = in_ddp(model)
    with loop._accelerated():
        assert runner.model is not before
        assert runner.model.module is model


def run(build_runner, seen, **loop):
    """A runner after a short adversarial training."""
    cfg = dict(
        type='mmrobust.AdvIterBasedTrainLoop',
        max_iters=2,
        val_interval=100,
        adversary=dict(type='mmrobust.FreeAdversary', replays=2),
    )
    runner = build_runner(train_cfg={**cfg, **loop})
    runner.model.backbone.register_forward_hook(
        lambda module, args, output: seen.append(
            (module.training, output[0].dtype, output[0].is_contiguous())
        )
    )
    runner.train()
    return runner


def test_the_loop_accelerates(build_runner):
    seen = []
    plain = run(build_runner, seen)
    speed = dict(autocast='bfloat16', channels_last=True)
    rounded = run(build_runner, seen, speed=speed)
    updates = [each[1:] for each in seen if each[0]]
    assert updates == [(torch.float32, True)] * 2 + [(torch.bfloat16, False)] * 2
    weight, other = (r.model.bbox_head.conv_cls.weight for r in (rounded, plain))
    assert not torch.equal(weight, other)
    torch.testing.assert_close(weight, other, rtol=0.05, atol=0.01)
    assert all(weight.is_contiguous() for weight in rounded.model.parameters())


# ------------------------------------------------------------------------ evaluation


def test_an_accelerated_attack_is_scored_as_any_other(evaluate):
    plain = evaluate(dict(pgd=PGD))
    plain_pgd = attack_of(plain, 'pgd')
    assert plain['environment']['speed'] == {}
    fast = evaluate(dict(pgd=PGD), speed=dict(autocast='bfloat16'))
    assert fast['benign']['metrics'] == plain['benign']['metrics']
    assert fast['environment']['speed'] == {'autocast': 'bfloat16'}
    pgd = attack_of(fast, 'pgd')
    # It did compute something else, and is an attack all the same.
    assert pgd['watched'] != plain_pgd['watched']
    assert ap(pgd) < 0.5 * ap(fast['benign'])
    assert abs(ap(pgd) - ap(plain_pgd)) < 0.1
    (note,) = [text for text in fast['checks'] if 'bfloat16' in text]
    assert note not in plain['checks']


def test_trials_are_in_full_precision(evaluate, monkeypatch):
    seen = []
    forward, where = LossOracle._losses, ['attack']

    def losses(self, *args):
        found = forward(self, *args)
        seen.append((where[0], float_of(self.model)))
        return found

    def float_of(model):
        return model.bbox_head.seen

    examine, check = preparation._examine, attack_evaluation.check_objectives

    def checked(*args):
        where[0] = 'check'  # of single values, before anything is attacked
        try:
            return check(*args)
        finally:
            where[0] = 'attack'

    def examined(*args, **kwargs):
        where[0] = 'trial'
        try:
            return examine(*args, **kwargs)
        finally:
            where[0] = 'attack'

    from mmdet.models.dense_heads import FCOSHead

    plain = FCOSHead.forward

    def forward_head(self, x):
        found = plain(self, x)
        self.seen = found[0][0].dtype
        return found

    monkeypatch.setattr(FCOSHead, 'forward', forward_head)
    monkeypatch.setattr(LossOracle, '_losses', losses)
    monkeypatch.setattr(attack_evaluation, 'check_objectives', checked)
    monkeypatch.setattr(preparation, '_examine', examined)
    loop = dict(num_images=1, check_images=1)
    evaluate(dict(pgd=PGD), speed=dict(autocast='bfloat16'), **loop)
    found = {each for each in seen if each[0] != 'check'}
    assert found == {('attack', torch.bfloat16), ('trial', torch.float32)}


def test_an_evaluation_is_not_resumed_at_another_speed(evaluate, monkeypatch):
    class Killed(Exception):
        pass

    def kill(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(attack_evaluation.AttackPass, 'run', kill)
        with pytest.raises(Killed):
            evaluate(dict(pgd=PGD))
    with pytest.raises(ConfigError, match='speed'):
        evaluate(dict(pgd=PGD), speed=dict(autocast='bfloat16'))


# -------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(autocast='float16'), "autocast='float16'.*become 0"),
        (dict(autocast=True), 'autocast=True'),
        (dict(fp16=True), 'fp16.*autocast, channels_last, compile'),
        ('fast', 'fast.*dict'),
    ],
)
def test_an_impossible_option_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Acceleration.read(settings)


@pytest.mark.parametrize(
    ('settings', 'note'),
    [
        (dict(backend='fastest'), 'while compiling the backbone (speed.compile)'),
        (
            dict(backend=lambda *args: 1 / 0),
            'while running the compiled backbone (speed.compile)',
        ),
    ],
)
def test_what_torch_cannot_compile_is_named(settings, note):
    """The error is torch's own, with a note on which part it is about."""
    with pytest.raises(Exception, match=r'fastest|division') as caught:
        answer(build('fcos'), Acceleration(compile=settings), make_batch([(64, 64)], 0))
    assert note in caught.value.__notes__


def test_a_model_without_parts_cannot_be_compiled():
    speed = Acceleration(compile=True)
    with pytest.raises(ConfigError, match='Linear has no backbone or neck'):
        with speed.prepared(nn.Linear(2, 2)):
            pass


def test_training_in_two_ways_at_once_is_refused(build_runner):
    loop = dict(
        type='mmrobust.AdvIterBasedTrainLoop',
        max_iters=2,
        adversary=dict(type='mmrobust.FreeAdversary', replays=2),
    )
    runner = build_runner(train_cfg={**loop, 'speed': dict(compile=True)}, compile=True)
    with pytest.raises(ConfigError, match='compile compiles the whole update'):
        runner.train()
    runner = build_runner(train_cfg={**loop, 'speed': dict(autocast='bfloat16')})
    train_loop = runner.build_train_loop(runner._train_loop)
    half = object.__new__(AmpOptimWrapper)  # it asks for a GPU
    runner.optim_wrapper, half.cast_dtype = half, None
    with pytest.raises(ConfigError, match='float16'), train_loop._accelerated():
        pass
    half.cast_dtype = torch.bfloat16
    with train_loop._accelerated():
        pass
