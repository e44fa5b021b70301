"""DN-DETR: its queries, its mask, its losses, and that attacks never see them."""

import math
from copy import deepcopy
from pathlib import Path

import mmrobust  # noqa: F401  (before mmdet: it provides mmcv's operators)
import pytest
import tiny
from config_files import without_memory
import torch
from mmdet.models.dense_heads import dino_head
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData
from mmrobust.training import FreeAdversary, PGDAdversary
from mmrobust.errors import ConfigError
from mmrobust.models import DNDETR, DNDETRHead, DnQueryGenerator
from mmrobust.objective import LossOracle, Objective, loss_mode

FULL_SIZE = Path(__file__).parents[2] / 'configs/robust_dn-detr_r50.py'
TERMS = ('loss_cls', 'loss_bbox', 'loss_iou')
TWO_AND_ONE = (
    ([[8.0, 8, 40, 40], [16, 20, 60, 52]], [0, 2]),
    ([[30.0, 4, 62, 36]], [1]),
)
NONE = ([], [])


def sample_of(boxes, labels, shape=(64, 80)):
    sample = DetDataSample(
        metainfo=dict(
            img_shape=shape,
            ori_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
    )
    return sample


def batch_of(objects=TWO_AND_ONE, shape=(64, 96)):
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8)
        for _ in objects
    ]
    samples = [sample_of(*each, shape=shape) for each in objects]
    return dict(inputs=images, data_samples=samples)


def build(config=None, **dn_cfg):
    torch.manual_seed(0)
    config = config or tiny.dn_detr()
    # As in the papers: BatchNorm never moves, so that modes differ in nothing else.
    config['backbone'].update(norm_eval=True)
    if dn_cfg:
        config['dn_cfg'].update(dn_cfg)
    model = MODELS.build(ConfigDict(config))
    model.init_weights()
    return model.train()


def losses_of(model, batch):
    data = model.data_preprocessor(deepcopy(batch), True)
    return model(**data, mode='loss')


def is_denoising(name):
    return name.split('.')[-1].startswith('dn_')


def generator_of(**kwargs):
    torch.manual_seed(0)
    settings = dict(num_classes=3, embed_dims=8, num_matching_queries=4)
    return DnQueryGenerator(**{**settings, **kwargs})


def groups_of(count):
    return dict(dynamic=False, num_groups=count)


# Size and structure


def test_the_full_size_model_is_dab_detr_and_a_label_embedding():
    config = Config.fromfile(FULL_SIZE).model
    config.backbone.init_cfg = None
    stock = deepcopy(config)
    stock.update(type='DABDETR')
    stock.bbox_head.type = 'DABDETRHead'
    stock.pop('dn_cfg')
    with without_memory():
        models = [MODELS.build(each) for each in (config, stock)]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts[0] - counts[1] == 81 * 255
    assert 43e6 < counts[1] < 45e6  # 44 M in arXiv 2201.12329, table 2


def test_output_shapes():
    model = build()
    assert isinstance(model, DNDETR)
    assert isinstance(model.bbox_head, DNDETRHead)
    batch = batch_of()
    data = model.data_preprocessor(batch, True)
    denoising = model.dn_query_generator(data['data_samples'])
    features = model.extract_feat(data['inputs'])
    outputs = model.forward_transformer(features, data['data_samples'], denoising)
    # 2 layers, 2 images, 2 groups of at most 2 objects and 10 matching queries.
    assert outputs['hidden_states'].shape == (2, 2, 4 + 10, 256)
    assert outputs['references'].shape == (2, 2, 4 + 10, 4)
    meta = dict(num_denoising_queries=4, num_denoising_groups=2)
    assert outputs['dn_meta'] == meta
    scores, boxes = model(**data, mode='tensor')
    assert scores.shape == (2, 2, 10, 3)
    assert boxes.shape == (2, 2, 10, 4)


def test_matching_queries_start_as_no_object_and_others_as_their_label():
    generator = generator_of(label_noise_scale=0.0)
    labels = generator.label_embedding.weight
    assert labels.shape == (4, 7)  # a row for 'no object', a place for the indicator
    matching = generator.matching_content()
    assert torch.equal(matching, torch.cat([labels[3], torch.zeros(1)]))
    content = generator.generate_dn_label_query(torch.tensor([2]), 1)
    assert torch.equal(content[0], torch.cat([labels[2], torch.ones(1)]))

    model = build()
    queries, _ = model.pre_decoder(torch.zeros(2, 6, 256))
    wanted = model.dn_query_generator.matching_content()
    assert torch.equal(queries['query'], wanted.expand(2, 10, 256))


# The mask


@pytest.mark.parametrize(('most', 'groups'), [(2, 3), (3, 1), (0, 2)])
def test_the_mask_is_the_definition(most, groups):
    mask = generator_of().generate_dn_mask(most, groups, 'cpu')
    kinds = [group for group in range(groups) for _ in range(most)] + ['matching'] * 4
    assert mask.shape == (len(kinds), len(kinds))
    for i, query in enumerate(kinds):
        for j, key in enumerate(kinds):
            seen = key == 'matching' or query == key
            assert bool(mask[i, j]) == (not seen), (query, key)


def test_the_decoder_obeys_the_mask():
    model = build().eval()
    data = model.data_preprocessor(batch_of(), True)
    features = model.extract_feat(data['inputs'])
    content, boxes, mask, meta = model.dn_query_generator(data['data_samples'])

    def states(content, boxes, mask):
        outputs = model.forward_transformer(
            features, data['data_samples'], (content, boxes, mask, meta)
        )
        return outputs['hidden_states']

    changed = content.clone(), boxes.clone()
    changed[0][:, :2], changed[1][:, :2] = 3.0, -1.0  # the first group's two
    with torch.no_grad():
        before = states(content, boxes, mask)
        after = states(*changed, mask)
        leaky = states(*changed, torch.zeros_like(mask))
        alone = model.forward_transformer(features, data['data_samples'])
    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after[:, :, 2:], before[:, :, 2:], **close)
    assert (after[:, :, :2] - before[:, :, :2]).abs().max() > 0.1
    torch.testing.assert_close(alone['hidden_states'], before[:, :, 4:], **close)
    assert (leaky[:, :, 4:] - before[:, :, 4:]).abs().max() > 1e-3


# The noise


def test_without_noise_the_queries_are_the_ground_truth():
    generator = generator_of(
        label_noise_scale=0.0, box_noise_scale=0.0, group_cfg=groups_of(3)
    )
    samples = [sample_of(*each) for each in (*TWO_AND_ONE, NONE)]
    content, boxes, mask, meta = generator(samples)
    assert meta == dict(num_denoising_queries=6, num_denoising_groups=3)
    assert content.shape == (3, 6, 8)
    assert boxes.shape == (3, 6, 4)
    assert mask.shape == (10, 10)
    for image, (objects, labels) in enumerate((*TWO_AND_ONE, NONE)):
        for query in range(6):
            if query % 2 >= len(objects):  # padding
                assert not content[image, query].any()
                assert not boxes[image, query].any()
                continue
            x1, y1, x2, y2 = objects[query % 2]
            shares = [(x1 + x2) / 160, (y1 + y2) / 128, (x2 - x1) / 80, (y2 - y1) / 64]
            wanted = [math.log(share / (1 - share)) for share in shares]
            assert boxes[image, query].tolist() == pytest.approx(wanted, abs=1e-5)
            label = generator.label_embedding.weight[labels[query % 2]]
            assert torch.equal(content[image, query, :-1], label)
            assert content[image, query, -1] == 1


@pytest.mark.parametrize('scale', [0.4, 1.0])
def test_box_noise_fills_its_bounds(scale):
    generator = generator_of(box_noise_scale=scale)
    box = torch.tensor([[0.4, 0.5, 0.6, 0.58]])  # cx 0.5, cy 0.54, w 0.2, h 0.08
    noisy = generator.generate_dn_bbox_query(box, 4000).sigmoid()
    shift = (noisy - torch.tensor([0.5, 0.54, 0.2, 0.08])) / scale
    bounds = torch.tensor([0.1, 0.04, 0.2, 0.08])
    # A logit is bounded at 0.001, where the widest noise would make a box of size 0.
    assert (shift.abs() <= bounds + 1e-3).all()
    assert (shift.amax(0) > 0.98 * bounds).all()
    assert (shift.amin(0) < -0.95 * bounds).all()
    # Uniform: mean 0, standard deviation bound / sqrt(3), each value by itself.
    assert (shift.mean(0).abs() < 0.05 * bounds).all()
    torch.testing.assert_close(shift.std(0), bounds / 3**0.5, rtol=0.04, atol=0)
    off = torch.corrcoef(shift.T) - torch.eye(4)
    assert off.abs().max() < 0.06


def test_box_noise_stops_at_the_image():
    generator = generator_of(box_noise_scale=1.0)
    box = torch.tensor([[0.0, 0.0, 1.0, 0.02]])
    noisy = generator.generate_dn_bbox_query(box, 500)
    assert torch.isfinite(noisy).all()
    # Logits of 0.001 and 0.999, the end of their range.
    assert noisy.abs().max() <= math.log(1000) + 1e-4
    width = noisy.sigmoid()[:, 2]
    assert width.max() > 0.998
    assert 0.4 < (width > 0.998).float().mean() < 0.6  # half of them are clipped


@pytest.mark.parametrize(('share', 'classes'), [(0.3, 3), (1.0, 4), (0.2, 80)])
def test_the_share_of_other_labels(share, classes):
    generator = generator_of(num_classes=classes, label_noise_scale=share)
    rows = torch.arange(classes + 1.0)[:, None].expand(-1, 7)
    generator.label_embedding.weight.data.copy_(rows)  # a row tells its label
    content = generator.generate_dn_label_query(torch.tensor([1, 2]), 5000)
    labels = content[:, 0].reshape(5000, 2)
    changed = (labels != torch.tensor([1.0, 2.0])).float().mean()
    # A random label is the right one in one of `classes` cases.
    assert changed.item() == pytest.approx(share * (1 - 1 / classes), abs=0.015)
    assert labels.max() == classes - 1  # never 'no object'
    assert labels.min() == 0


def test_groups_have_noise_of_their_own():
    generator = generator_of(label_noise_scale=0.5, group_cfg=groups_of(2))
    _, boxes, _, _ = generator([sample_of(*TWO_AND_ONE[0])])
    assert (boxes[0, :2] - boxes[0, 2:]).abs().min() > 1e-4


def test_the_number_of_groups_can_follow_the_objects():
    generator = generator_of(group_cfg=dict(dynamic=True, num_dn_queries=7))
    for objects, groups in ((TWO_AND_ONE, 3), (TWO_AND_ONE[1:], 7), ([NONE], 1)):
        content, _, mask, meta = generator([sample_of(*each) for each in objects])
        most = max(len(boxes) for boxes, _ in objects)
        assert meta['num_denoising_groups'] == groups
        assert meta['num_denoising_queries'] == content.size(1) == most * groups
        assert len(mask) == most * groups + 4


# The losses


def focal(logit, positive):
    share = 1 / (1 + math.exp(-logit))
    if positive:
        return -0.25 * (1 - share) ** 2 * math.log(share)
    return -0.75 * share**2 * math.log(1 - share)


def giou_loss(one, two):
    """1 - GIoU of two boxes given as cx, cy, w, h."""

    def corners(box):
        x, y, w, h = box
        return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]

    (a1, b1, a2, b2), (c1, d1, c2, d2) = corners(one), corners(two)
    shared = max(0, min(a2, c2) - max(a1, c1)) * max(0, min(b2, d2) - max(b1, d1))
    union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - shared
    hull = (max(a2, c2) - min(a1, c1)) * (max(b2, d2) - min(b1, d1))
    return 1 - shared / union + (hull - union) / hull


def denoising_case(objects):
    """Samples, logits (1, N, D, 3) and boxes (1, N, D, 4) of two groups."""
    samples = [sample_of(*each) for each in objects]
    queries = 2 * max(len(boxes) for boxes, _ in objects)
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(1, len(objects), queries, 3, generator=draw) * 2
    boxes = torch.rand(1, len(objects), queries, 4, generator=draw) * 0.4 + 0.2
    return samples, logits, boxes


def dn_losses(head, samples, logits, boxes):
    terms = head.loss_dn(
        logits,
        boxes,
        batch_gt_instances=[sample.gt_instances for sample in samples],
        batch_img_metas=[sample.metainfo for sample in samples],
        dn_meta=dict(num_denoising_queries=logits.size(2), num_denoising_groups=2),
    )
    return [term[0] for term in terms]


def test_denoising_losses_by_hand():
    """Two images with two objects and one, two groups: six queries, two of padding."""
    head = build().bbox_head
    samples, logits, boxes = denoising_case(TWO_AND_ONE)
    wanted = [0.0, 0.0, 0.0]
    for image, (objects, labels) in enumerate(TWO_AND_ONE):
        for group in range(2):
            for i, (x1, y1, x2, y2) in enumerate(objects):
                query = group * 2 + i
                box = boxes[0, image, query].tolist()
                truth = [
                    (x1 + x2) / 160,
                    (y1 + y2) / 128,
                    (x2 - x1) / 80,
                    (y2 - y1) / 64,
                ]
                for label, logit in enumerate(logits[0, image, query].tolist()):
                    wanted[0] += focal(logit, label == labels[i])
                wanted[1] += 5 * sum(
                    abs(a - b) for a, b in zip(box, truth, strict=True)
                )
                wanted[2] += 2 * giou_loss(box, truth)
    got = [loss.item() for loss in dn_losses(head, samples, logits, boxes)]
    assert got == pytest.approx([value / 6 for value in wanted], rel=1e-4)


def test_padding_has_no_loss():
    head = build().bbox_head
    samples, logits, boxes = denoising_case(TWO_AND_ONE)
    leaves = logits.requires_grad_(), boxes.requires_grad_()
    grads = torch.autograd.grad(sum(dn_losses(head, samples, *leaves)), leaves)
    for grad in grads:
        used = grad[0].abs().sum(-1) > 0
        assert used.tolist() == [[True] * 4, [True, False, True, False]]


def test_processes_share_the_number_of_positives(monkeypatch):
    """Another process has three times as many objects: the mean is twice ours."""
    samples, logits, boxes = denoising_case(TWO_AND_ONE)
    head = build().bbox_head
    alone = dn_losses(head, samples, logits, boxes)
    monkeypatch.setattr(dino_head, 'reduce_mean', lambda value: value * 2)
    shared = dn_losses(head, samples, logits, boxes)
    # mmdet's DAB-DETR leaves the classification loss to each process by default.
    for one, other, factor in zip(alone, shared, (1, 2, 2), strict=True):
        torch.testing.assert_close(one, other * factor)
    head.sync_cls_avg_factor = True
    synced = dn_losses(head, samples, logits, boxes)[0]
    torch.testing.assert_close(alone[0], synced.squeeze() * 2)


def test_all_layers_have_both_kinds_of_losses():
    names = set(losses_of(build(), batch_of()))
    matching = {*TERMS, *(f'd0.{term}' for term in TERMS)}
    denoising = {
        *(f'dn_{term}' for term in TERMS),
        *(f'd0.dn_{term}' for term in TERMS),
    }
    assert names == matching | denoising


def test_matching_losses_are_dab_detrs():
    """With a 'no object' of zeros, the only thing that DAB-DETR does not have."""
    model, batch = build(), batch_of()
    model.dn_query_generator.label_embedding.weight.data[-1] = 0
    stock = build(tiny.dab_detr())
    weights = model.state_dict()
    weights.pop('dn_query_generator.label_embedding.weight')
    stock.load_state_dict(weights)
    wanted = losses_of(stock, batch)
    with_queries = losses_of(model, batch)
    without = losses_of(model.eval(), batch)
    for name, loss in wanted.items():
        assert torch.equal(without[name], loss), name
        torch.testing.assert_close(with_queries[name], loss, rtol=1e-4, atol=1e-5)
    assert set(without) == set(wanted)
    assert set(with_queries) > set(wanted)


# Attacks and predictions


def test_under_attack_there_are_no_denoising_queries():
    model, batch = build(), batch_of()
    training = losses_of(model, batch)
    matching = {name: v for name, v in training.items() if not is_denoising(name)}
    assert len(matching) < len(training)
    with loss_mode(model):
        assert model.training
        state = torch.get_rng_state()
        first, again = losses_of(model, batch), losses_of(model, batch)
        assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert set(first) == set(matching)
    for name, loss in first.items():
        assert torch.equal(loss, again[name])
        torch.testing.assert_close(loss, matching[name], rtol=1e-4, atol=1e-5)
    assert any(is_denoising(name) for name in losses_of(model, batch))  # back again


def test_training_losses_differ_by_noise_alone():
    model, batch = build(), batch_of()
    one, two = losses_of(model, batch), losses_of(model, batch)
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-4) != is_denoising(name)


def test_the_gradient_reaches_the_image():
    model, batch = build(), batch_of()
    with loss_mode(model):
        oracle = LossOracle(model, batch, batch['data_samples'], Objective())
        values, grads = oracle.value_and_grad([i.float() for i in batch['inputs']])
    assert torch.isfinite(values).all()
    for grad in grads:
        assert grad.shape == (3, 64, 96)
        assert grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('adversary', 'built'),
    [
        (FreeAdversary(eps=4), 1),
        (FreeAdversary(eps=4, objective=['loss_cls', 'loss_bbox']), 1),
        (PGDAdversary(eps=4, num_steps=2), 1),  # for the update, not for its steps
    ],
    ids=['free', 'free_named', 'pgd'],
)
def test_adversarial_training(monkeypatch, adversary, built):
    model, calls = build(), []
    make = DnQueryGenerator.__call__
    monkeypatch.setattr(
        DnQueryGenerator, '__call__', lambda *args: calls.append(1) or make(*args)
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    logs = adversary.train_step(model, OptimWrapper(optimizer), batch_of(), 0)
    assert len(calls) == built
    assert math.isfinite(logs['loss'])
    assert logs['dn_loss_cls'] > 0
    name = 'dn_query_generator.label_embedding.weight'
    assert not torch.equal(model.get_parameter(name), before[name])
    if isinstance(adversary, FreeAdversary):
        deltas = adversary.state_dict(1)['deltas']
        assert all(delta.abs().max() == 4 for delta in deltas)


def test_prediction():
    model, batch = build(), batch_of()
    data = model.data_preprocessor(batch, False)
    # In training mode too, where DINO of mmdet fails.
    for mode in (model.eval(), model.train()):
        with torch.no_grad():
            results = mode(**deepcopy(data), mode='predict')
        for result in results:
            found = result.pred_instances
            assert found.bboxes.shape == (10, 4)
            assert (found.bboxes[:, 2:] >= found.bboxes[:, :2]).all()
            assert found.bboxes.min() >= 0
            assert found.bboxes[:, 2].max() <= 96
            assert set(found.labels.tolist()) <= {0, 1, 2}


# Odd batches


@pytest.mark.parametrize(
    'objects', [TWO_AND_ONE, [NONE], [NONE, NONE], [TWO_AND_ONE[0], NONE]]
)
def test_images_without_objects(objects):
    model = build()
    names = set(losses_of(model, batch_of()))
    losses = losses_of(model, batch_of(objects))
    assert set(losses) == names  # processes that differ here would wait for each other
    total, _ = model.parse_losses(losses)
    total.backward()
    assert math.isfinite(total)
    for name, weight in model.named_parameters():  # or DDP would complain
        assert weight.grad is None or torch.isfinite(weight.grad).all(), name
        assert (weight.grad is None) == (not weight.requires_grad), name
    if not any(boxes for boxes, _ in objects):
        assert all(losses[name].sum() == 0 for name in losses if is_denoising(name))


def test_an_image_without_objects_does_not_change_the_others_loss():
    """Only through the mean over positives, which it has none of."""
    samples, logits, boxes = denoising_case([TWO_AND_ONE[0], NONE])
    head = build().bbox_head
    both = dn_losses(head, samples, logits, boxes)
    alone = dn_losses(head, samples[:1], logits[:, :1], boxes[:, :1])
    torch.testing.assert_close(both, alone)


def test_autocast():
    model = build(label_noise_scale=0.0, box_noise_scale=0.0)
    batch = batch_of()
    wanted = losses_of(model, batch)
    with torch.autocast('cpu', torch.bfloat16):
        losses = losses_of(model, batch)
        total, _ = model.parse_losses(losses)
    total.backward()
    assert all(torch.isfinite(w.grad).all() for w in model.parameters())
    for name, loss in wanted.items():
        if is_denoising(name):  # matching may choose other queries
            torch.testing.assert_close(losses[name].float(), loss, rtol=0.05, atol=0.02)


# Mistakes


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_classes=5), 'num_classes'),
        (dict(label_noise_scale=1.2), 'label_noise_scale=1.2'),
        (dict(box_noise_scale=-0.1), 'box_noise_scale=-0.1'),
        (dict(group_cfg=groups_of(0)), 'num_groups'),
    ],
)
def test_mistakes_in_dn_cfg(change, message):
    with pytest.raises(ConfigError, match=message):
        build(**change)


def test_settings_that_do_not_go_with_denoising():
    config = tiny.dn_detr()
    config['num_patterns'] = 2
    with pytest.raises(ConfigError, match='num_patterns=2'):
        build(config)
    config = tiny.dn_detr()
    config['decoder'].update(query_dim=2, with_modulated_hw_attn=False)
    with pytest.raises(ConfigError, match='query_dim=2'):
        build(config)
