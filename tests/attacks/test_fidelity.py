"""The preset ``paper`` against the published code of arXiv 2305.17438, step by step.

The reference below is written from what that code computes, in plain torch, and shares
nothing with the package: normalisation, padding, the losses (from the heads' raw
outputs), class weights, bounds, signs, projections and updates are done by hand.
mmdet's own assigners and samplers say which prediction belongs to which object.

Every step of the reference starts where the package stands, so a gradient that is zero
up to rounding (and may have either sign) does not make all later steps incomparable.
By induction over the steps, both walk the same way.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmrobust.attacks import PGD
from mmrobust.batch import float_images
from mmrobust.frame import attack_samples
from mmrobust.objective.class_weights import class_weights, count_classes
from mmrobust.training import FreeAdversary
from mmrobust.objective import LossOracle, loss_mode
from mmrobust.registry import ADVERSARIES, ATTACKS
from torch import nn
from updates import make_batch, make_model, watch_inputs

CONFIGS = Path(__file__).parents[2] / 'configs/paper'
FILES = {
    'faster_rcnn': 'robust_faster-rcnn_r50.py',
    'fcos': 'robust_fcos_r50.py',
    'dn_detr': 'robust_dn-detr_r50.py',
}
FAMILIES = sorted(FILES)
STRIDES = (8, 16, 32, 64)
MEAN = torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).reshape(3, 1, 1)

# 10 / 6, 10 / 3 and 10 / 1, divided by their mean, which is 5.
COUNTS, WEIGHTS = [6, 3, 1], torch.tensor([1 / 3, 2 / 3, 2])

# What the head's losses are, and the rest of the training loss: (cls, reg, rest).


# The reference: losses


class Bound:
    """The published ``clip``: value 6 above 6, and the gradient times 6 / element."""

    def __init__(self, limit):
        self.limit = limit
        self.above = 0

    def __call__(self, elements):
        if self.limit is None:
            return elements
        high = elements.detach() > self.limit
        self.above += int(high.sum())
        scaled = self.limit * elements / torch.where(high, elements.detach(), 1)
        return torch.where(high, scaled, elements)


def focal(logits, labels):
    """Focal loss (alpha 0.25, gamma 2) of every element; label C is background."""
    hot = torch.zeros(len(labels), logits.shape[1] + 1)
    hot[torch.arange(len(labels)), labels] = 1
    hot = hot[:, :-1]
    p = torch.sigmoid(logits)
    positive = -0.25 * (1 - p) ** 2 * F.logsigmoid(logits)
    negative = -0.75 * p**2 * F.logsigmoid(-logits)
    return hot * positive + (1 - hot) * negative


def giou_loss(a, b):
    """1 - GIoU of boxes (N, 4) with corners."""
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    low, high = torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    union = (area_a + area_b - common).clamp(min=1e-6)
    low, high = torch.min(a[:, :2], b[:, :2]), torch.max(a[:, 2:], b[:, 2:])
    hull = (high - low).clamp(min=0).prod(1).clamp(min=1e-6)
    return 1 - (common / union - (hull - union) / hull)


def corners(boxes):
    centre, size = boxes[:, :2], boxes[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def fcos_terms(model, x, samples, weights, bound, published_units=False):
    """Focal loss over points and classes, GIoU weighted by centerness."""
    head = model.bbox_head
    scores, boxes, centers = head(model.extract_feat(x))
    points = []
    for score, stride in zip(scores, STRIDES, strict=True):
        ys, xs = torch.meshgrid(
            torch.arange(score.shape[2]), torch.arange(score.shape[3]), indexing='ij'
        )
        grid = torch.stack([xs.flatten(), ys.flatten()], 1)
        points.append((grid + 0.5) * stride)
    labels, targets = map(
        torch.cat, head.get_targets(points, [s.gt_instances for s in samples])
    )

    def flat(maps, scale=False):
        rows = [
            # In eval mode the head gives pixels, and its targets are in strides.
            (m / stride if scale and not head.training else m)
            .permute(0, 2, 3, 1)
            .flatten(0, 2)
            for m, stride in zip(maps, STRIDES, strict=True)
        ]
        return torch.cat(rows)

    logits, predicted = flat(scores), flat(boxes, scale=not published_units)
    elements = focal(logits, labels)
    if weights is not None:
        elements = elements * weights
    positive = labels < 3
    count = max(int(positive.sum()), 1)
    cls = bound(elements).sum() / count
    at = torch.cat([p.repeat(len(samples), 1) for p in points])[positive]
    left, top, right, bottom = targets[positive].unbind(1)
    center = torch.sqrt(
        torch.min(left, right)
        / torch.max(left, right)
        * (torch.min(top, bottom) / torch.max(top, bottom))
    )

    def box(distances):
        return torch.cat([at - distances[:, :2], at + distances[:, 2:]], 1)

    gap = giou_loss(box(predicted[positive]), box(targets[positive]))
    reg = (gap * center).sum() / center.sum()
    logit = flat(centers)[positive, 0]
    entropy = -center * F.logsigmoid(logit) - (1 - center) * F.logsigmoid(-logit)
    return cls, reg, entropy.sum() / count


def faster_rcnn_terms(model, x, samples, weights, bound):
    """Cross entropy and L1 of the sampled regions; the RPN's losses are the rest."""
    features = model.extract_feat(x)
    objectness = deepcopy(samples)
    for sample in objectness:
        sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    rpn, proposals = model.rpn_head.loss_and_predict(
        features, objectness, proposal_cfg=model.train_cfg.rpn_proposal
    )
    head, sampled = model.roi_head, []
    for found, sample in zip(proposals, samples, strict=True):
        found.priors = found.pop('bboxes')
        objects = sample.gt_instances
        assigned = head.bbox_assigner.assign(found, objects, None)
        sampled.append(head.bbox_sampler.sample(assigned, found, objects))
    rois = bbox2roi([result.priors for result in sampled])
    logits, deltas = head.bbox_head(head.bbox_roi_extractor(features[:4], rois))
    labels, rows, targets = [], [], []
    for result in sampled:
        number = len(result.pos_priors)
        begin = sum(map(len, labels))
        rows.append(torch.arange(begin, begin + number))
        background = torch.full((len(result.neg_priors),), 3)
        labels.append(torch.cat([result.pos_gt_labels, background]))
        a, b = result.pos_priors, result.pos_gt_bboxes
        shift = ((b[:, :2] + b[:, 2:]) - (a[:, :2] + a[:, 2:])) / 2
        size = a[:, 2:] - a[:, :2]
        growth = torch.log((b[:, 2:] - b[:, :2]) / size)
        targets.append(torch.cat([shift / size / 0.1, growth / 0.2], 1))
    label, row = torch.cat(labels), torch.cat(rows)
    every = torch.arange(len(label))
    entropy = torch.logsumexp(logits, 1) - logits[every, label]
    if weights is not None:
        entropy = entropy * torch.cat([weights, torch.ones(1)])[label]
    chosen = deltas.reshape(len(label), 3, 4)[row, label[row]]
    distance = (chosen - torch.cat(targets)).abs().sum(1)
    rest = torch.stack([part for name in rpn for part in rpn[name]]).sum()
    count = len(label)
    return bound(entropy).sum() / count, bound(distance).sum() / count, rest


def dn_detr_terms(model, x, samples, weights, bound):
    """Last layer's focal loss and L1; GIoU, other layers and denoising are the rest."""
    features, head = model.extract_feat(x), model.bbox_head
    denoising, count = None, 0
    if model.training:
        denoising = model.dn_query_generator(samples)
        count = denoising[3]['num_denoising_queries']
    outputs = model.forward_transformer(features, samples, denoising)
    scores, boxes = head(outputs['hidden_states'], outputs['references'])
    size = torch.tensor([samples[0].img_shape[i] for i in (1, 0, 1, 0)]).float()
    assert len({sample.img_shape for sample in samples}) == 1
    layers = []
    for score, box in zip(scores[:, :, count:], boxes[:, :, count:], strict=True):
        labels, _, targets, matched, positives, _ = head.get_targets(
            list(score),
            list(box),
            [s.gt_instances for s in samples],
            [s.metainfo for s in samples],
        )
        used = torch.cat(matched)[:, 0] > 0
        assert int(used.sum()) == positives
        elements = focal(score.flatten(0, 1), torch.cat(labels))
        if weights is not None:
            elements = elements * weights
        mine, theirs = box.flatten(0, 1)[used], torch.cat(targets)[used]
        gap = giou_loss(corners(mine) * size, corners(theirs) * size)
        layers.append(
            (
                bound(elements).sum() / positives,
                5 * (mine - theirs).abs().sum() / positives,
                2 * gap.sum() / positives,
            )
        )
    cls, reg, rest = layers[-1]
    rest = rest + sum(sum(layer) for layer in layers[:-1])
    if denoising is not None:
        groups = denoising[3]['num_denoising_groups']
        for score, box in zip(scores[:, :, :count], boxes[:, :, :count], strict=True):
            rest = rest + denoising_loss(score, box, samples, groups, size)
    return cls, reg, rest


def denoising_loss(scores, boxes, samples, groups, size):
    """Every group restores all objects; the rest of an image's queries is padding."""
    slots, total, count = scores.shape[1] // groups, torch.zeros(()), 0
    for image, sample in enumerate(samples):
        objects = sample.gt_instances
        x1, y1, x2, y2 = (objects.bboxes / size).unbind(1)
        truth = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
        for group in range(groups):
            own = slice(group * slots, group * slots + len(truth))
            box = boxes[image, own]
            total = total + focal(scores[image, own], objects.labels).sum()
            total = total + 5 * (box - truth).abs().sum()
            gap = giou_loss(corners(box) * size, corners(truth) * size)
            total = total + 2 * gap.sum()
            count += len(truth)
    return total / count


TERMS = {
    'fcos': fcos_terms,
    'faster_rcnn': faster_rcnn_terms,
    'dn_detr': dn_detr_terms,
}


# The reference: images and updates


def network_input(images, samples):
    """BGR pixels to normalised RGB, padded with zeros to a multiple of 32."""
    height = max(-(-image.shape[1] // 32) * 32 for image in images)
    width = max(-(-image.shape[2] // 32) * 32 for image in images)
    padded = [
        F.pad(
            (image.flip(0) - MEAN) / STD,
            (0, width - image.shape[2], 0, height - image.shape[1]),
        )
        for image in images
    ]
    own = deepcopy(samples)
    for sample in own:
        shape = (height, width)
        sample.set_metainfo(dict(batch_input_shape=shape, pad_shape=shape))
    return torch.stack(padded), own


def reference_gradient(family, model, image, sample, attack, seed, **settings):
    """Gradient of A_cls, A_reg or A_cwa with respect to the pixels of one image."""
    leaf = image.clone().requires_grad_()
    x, samples = network_input([leaf], [sample])
    torch.manual_seed(seed)
    settings = {'weights': None, 'bound': Bound(None), **settings}
    cls, reg, _ = TERMS[family](model, x, samples, **settings)
    loss = {'cls': cls, 'reg': reg, 'cwa': cls + reg}[attack]
    return torch.autograd.grad(loss, leaf)[0]


def assert_same_up_to_ties(ours, theirs, grad):
    differs = ours != theirs
    assert differs.float().mean() < 1e-3
    assert bool((grad[differs].abs() < 1e-6 * grad.abs().max()).all())


# The package, as the preset sets it up


def preset(family):
    return Config.fromfile(CONFIGS / FILES[family])


def head_of(model):
    return model['roi_head']['bbox_head'] if 'roi_head' in model else model['bbox_head']


def paper_model(family):
    """A tiny detector with the losses of the preset, and with something to attack.

    Fresh layers predict next to nothing, with all losses alike, and residual branches
    are silent. Here BatchNorm has the statistics of a batch and lets every branch
    through, and predictions are spread out so far that some elements lie above the
    published bound.
    """
    config = tiny.FAMILIES[family]()
    config['data_preprocessor']['pad_size_divisor'] = 32
    head, published = head_of(config), head_of(preset(family).model)
    for name in ('loss_cls', 'loss_bbox'):
        head[name] = published[name].to_dict()
    torch.manual_seed(0)
    model = make_model(ConfigDict(config))
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.momentum = 1.0
        nn.init.ones_(norm.weight)
    x, _ = network_input(float_images(make_batch([(96, 128)] * 4, 9), 'cpu'), [])
    with torch.no_grad():
        model.backbone(x)
    layers: list[tuple[nn.Module, float]]
    if family == 'fcos':
        # Distances of about two strides: boxes that overlap their targets.
        nn.init.constant_(model.bbox_head.conv_reg.bias, 2.0)
        layers = [(model.bbox_head.conv_cls, 1.0), (model.bbox_head.conv_reg, 0.1)]
    elif family == 'faster_rcnn':
        regions = model.roi_head.bbox_head
        layers = [(regions.fc_cls, 0.5), (regions.fc_reg, 0.5)]
    else:
        queries = model.bbox_head
        layers = [(queries.fc_cls, 0.3), (queries.fc_reg.layers[-1], 0.1)]
    for layer, spread in layers:
        nn.init.normal_(layer.weight, std=spread)
    model.backbone.norm_eval = True  # as in the published configs
    return model.train()


class Annotations:
    """A dataset with so many objects of every class, one in each image."""

    def __init__(self, counts):
        self.labels = [label for label, n in enumerate(counts) for _ in range(n)]

    def __len__(self):
        return len(self.labels)

    def get_data_info(self, index):
        return dict(instances=[dict(bbox_label=self.labels[index])])


def class_wise(attack, counts):
    """Gives an attack the weights that the test loop would count for it."""
    counted = count_classes([Annotations(counts)], len(counts))
    attack.objective.class_weights = class_weights(counted)


def iterates_of(model, batch, attack, seed):
    """Every iterate of every image; step k is computed under the seed plus k."""
    images = float_images(batch, 'cpu')
    samples = attack_samples(batch['data_samples'], 'cpu', 'input')
    asked = []

    def note(module, args):
        torch.manual_seed(seed + len(asked) // len(images))
        asked.append(args[0]['inputs'][0].detach().clone())

    handle = model.data_preprocessor.register_forward_pre_hook(note)
    with loss_mode(model):
        oracle = LossOracle(model, batch, samples, attack.objective)
        last = attack.perturb(oracle, images, torch.Generator())
    handle.remove()
    assert len(asked) == attack.num_steps * len(images)
    return [[*asked[slot :: len(images)], final] for slot, final in enumerate(last)]


# The attacks


def paper_attack(family, name):
    attack = ATTACKS.build(preset(family).test_cfg.attacks[name])
    assert isinstance(attack, PGD)
    return attack


@pytest.mark.parametrize('name', ['cls', 'reg', 'cwa'])
@pytest.mark.parametrize('family', FAMILIES)
def test_every_step_of_an_attack_is_the_reference(family, name):
    """A_cls, A_reg and A_cwa: radius 4, step 1, ten steps from the clean image.

    The first image needs no padding. The second does, and padding stays as it is; the
    published code perturbs it too.
    """
    model, attack = paper_model(family), paper_attack(family, name)
    reference = deepcopy(model).eval()
    weights = None
    if name == 'cwa':
        class_wise(attack, COUNTS)
        weights = WEIGHTS
    batch = make_batch([(64, 96), (80, 112)], 0)
    iterates = iterates_of(model, batch, attack, seed=10)
    for slot, walked in enumerate(iterates):
        clean = batch['inputs'][slot].float()
        assert len(walked) == 11
        assert torch.equal(walked[0], clean)
        for step in (range(10), (0, 4, 9))[slot]:
            grad = reference_gradient(
                family,
                reference,
                walked[step],
                batch['data_samples'][slot],
                name,
                seed=10 + step,
                weights=weights,
            )
            moved = walked[step] + 1.0 * grad.sign()
            moved = torch.max(torch.min(moved, clean + 4), clean - 4).clamp(0, 255)
            assert_same_up_to_ties(walked[step + 1], moved, grad)
        # It is an attack: some pixels went all the way.
        assert (walked[-1] - clean).abs().max() == 4
        assert (walked[-1] != clean).float().mean() > 0.2


@pytest.mark.parametrize('family', FAMILIES)
def test_class_weights_change_the_perturbation(family):
    """With uneven counts A_cwa is not the sum of both losses, with even ones it is."""
    model, batch = paper_model(family), make_batch([(64, 96)], 0)
    attacks = [paper_attack(family, 'cwa') for _ in range(2)]
    class_wise(attacks[0], COUNTS)
    class_wise(attacks[1], [4, 4, 4])
    attacks.append(
        PGD(
            eps=4,
            step_size=1,
            num_steps=10,
            objective='cls+reg',
            random_start=False,
            keep_best=False,
        )
    )
    for attack in attacks:
        attack.num_steps = 3
    uneven, even, plain = (
        iterates_of(model, batch, attack, seed=10)[0][-1] for attack in attacks
    )
    assert torch.equal(even, plain)
    assert (uneven != plain).float().mean() > 0.02


@pytest.mark.parametrize(
    ('family', 'name'),
    [('faster_rcnn', 'cls'), ('faster_rcnn', 'reg'), ('fcos', 'cls')],
)
def test_attacks_see_the_losses_without_their_bound(family, name):
    """Here the preset leaves the published code, which bounds them in attacks too.

    The elements that the bound is about exist, and it would lead elsewhere, so the
    agreement above is with the bare losses.
    """
    model, attack = paper_model(family), paper_attack(family, name)
    batch = make_batch([(64, 96)], 0)
    first = iterates_of(model, batch, attack, seed=10)[0][1]
    bound, clean = Bound(6.0), batch['inputs'][0].float()
    grad = reference_gradient(
        family,
        model.eval(),
        clean,
        batch['data_samples'][0],
        name,
        seed=10,
        bound=bound,
    )
    assert bound.above > 0
    moved = (clean + grad.sign()).clamp(0, 255)
    assert (first != moved).float().mean() > 0.01


def test_boxes_of_fcos_are_compared_in_one_unit():
    """Here the preset leaves the published code as well.

    That runs the head in eval mode, where it gives distances in pixels, and compares
    them with targets in strides: an A_reg on something else than the trained loss.
    """
    model, attack = paper_model('fcos'), paper_attack('fcos', 'reg')
    batch = make_batch([(64, 96)], 0)
    first = iterates_of(model, batch, attack, seed=10)[0][1]
    clean, sample = batch['inputs'][0].float(), batch['data_samples'][0]
    model.eval()
    moved = []
    for published in (False, True):
        grad = reference_gradient(
            'fcos', model, clean, sample, 'reg', seed=10, published_units=published
        )
        moved.append((clean + grad.sign()).clamp(0, 255))
    assert (first != moved[0]).float().mean() < 1e-3
    assert (first != moved[1]).float().mean() > 0.1


# FreeAT


def reference_update(
    family,
    model,
    batch,
    noise,
    limit,
    rate,
    max_norm,
    seed,
    weights=None,
    follow_all=False,
):
    """One update with plain SGD after clipping the norm of its gradient.

    The noise follows the head's two losses, or all of them; losses are weighted by
    class where weights are given.

    Returns the images seen, the new noise, its gradient, and the bound.
    """
    clean = torch.stack([image.float() for image in batch['inputs']])
    noise = torch.zeros_like(clean) if noise is None else noise
    noise = F.interpolate(noise, size=clean.shape[2:])  # nearest
    seen = (clean + noise).clamp(0, 255).requires_grad_()
    x, samples = network_input(list(seen), batch['data_samples'])
    assert x.shape == clean.shape  # no padding: the published noise covers no more
    torch.manual_seed(seed)
    bound = Bound(limit)
    cls, reg, rest = TERMS[family](model, x, samples, weights, bound)
    total = cls + reg + rest
    learnt = [w for w in model.parameters() if w.requires_grad]
    updates = torch.autograd.grad(total, learnt, retain_graph=True, allow_unused=True)
    (grad,) = torch.autograd.grad(total if follow_all else cls + reg, seen)
    noise = (noise + 4 * grad.sign()).clamp(-4, 4)
    norm = torch.stack([u.norm() for u in updates if u is not None]).norm()
    factor = min(1.0, max_norm / (float(norm) + 1e-6))
    with torch.no_grad():
        for weight, update in zip(learnt, updates, strict=True):
            if update is not None:
                weight -= rate * factor * update
    return seen.detach(), noise, grad, bound


def moves(before, after):
    old = dict(before.named_parameters())
    return {
        name: weight.detach() - old[name].detach()
        for name, weight in after.named_parameters()
    }


def furthest(ours, theirs):
    """Largest difference of two updates, in shares of the largest move."""
    largest = max(float(move.abs().max()) for move in theirs.values())
    assert largest > 0
    return max(
        float((ours[name] - move).abs().max()) / largest
        for name, move in theirs.items()
    )


@pytest.mark.parametrize('family', FAMILIES)
def test_every_update_of_freeat_is_the_reference(family):
    """Four replays of two batches of different sizes: noise, weights, and the bound.

    The perturbation follows the head's two losses alone and is carried from replay to
    replay and from batch to batch; the weights follow all losses. Losses of Faster
    R-CNN and FCOS are bounded at 6.
    """
    ours, config = paper_model(family), preset(family)
    adversary = ADVERSARIES.build(config.train_cfg.adversary)
    assert isinstance(adversary, FreeAdversary)
    assert adversary.replays == 4
    # Each batch is a pass over the data, and the noise outlives it.
    adversary.updates_per_epoch = 4
    # Moves large enough not to drown in the rounding of the weights.
    rate, max_norm = (1.0, 0.1) if family == 'dn_detr' else (0.01, 100.0)
    wrapper = OptimWrapper(
        torch.optim.SGD(ours.parameters(), lr=rate),
        clip_grad=config.optim_wrapper.clip_grad.to_dict(),
    )
    limit = None if family == 'dn_detr' else 6.0
    batches = [make_batch([size] * 2, s) for s, size in enumerate([(64, 96), (96, 64)])]
    for batch in batches:
        # Images with unequally many objects: not all denoising queries are real.
        second = batch['data_samples'][1]
        second.gt_instances = second.gt_instances[:1]
    shown = watch_inputs(ours)
    update, noise = 0, None

    def seed(module, args):
        torch.manual_seed(100 + update)

    ours.data_preprocessor.register_forward_pre_hook(seed)
    for update in range(8):
        batch = batches[update // 4]
        before, theirs, unbounded = (deepcopy(ours) for _ in range(3))
        adversary.train_step(ours, wrapper, batch, update)
        setting = (batch, noise)
        seen, moved, grad, bound = reference_update(
            family, theirs, *setting, limit, rate, max_norm, 100 + update
        )
        assert torch.equal(torch.stack(shown[update]), seen)
        # Only the very first update of a run sees clean images.
        clean = torch.stack([image.float() for image in batch['inputs']])
        assert torch.equal(seen, clean) == (update == 0)

        noise = torch.stack(adversary.state_dict(update + 1)['deltas'])
        assert_same_up_to_ties(noise, moved, grad)
        assert set(noise.unique().tolist()) <= {-4.0, 0.0, 4.0}
        for name, weight in theirs.named_parameters():
            found = ours.get_parameter(name)
            torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-7)
        # Close weights alone say little after one small update.
        expected = moves(before, theirs)
        assert furthest(moves(before, ours), expected) < 1e-4

        if limit is not None and update == 0:
            assert bound.above > 0
            _, free, *_ = reference_update(
                family, unbounded, *setting, None, rate, max_norm, 100 + update
            )
            assert (noise != free).float().mean() > 0.01
            assert furthest(moves(before, unbounded), expected) > 1e-2


@pytest.mark.parametrize('family', ['faster_rcnn', 'fcos'])
def test_class_wise_training_weights_before_it_bounds(family):
    """The published training type ``cwa``: the noise follows all losses as well."""
    ours = paper_model(family)
    batch = make_batch([(64, 96)] * 2, 0)
    before, theirs = deepcopy(ours), deepcopy(ours)
    adversary = FreeAdversary(eps=4, carry='run', class_weighting='dataset')
    adversary.prepare(Annotations(COUNTS))
    wrapper = OptimWrapper(torch.optim.SGD(ours.parameters(), lr=0.01))
    torch.manual_seed(100)
    adversary.train_step(ours, wrapper, batch, 0)
    *_, moved, grad, bound = reference_update(
        family,
        theirs,
        batch,
        None,
        limit=6.0,
        rate=0.01,
        max_norm=float('inf'),
        seed=100,
        weights=WEIGHTS,
        follow_all=True,
    )
    assert bound.above > 0
    noise = torch.stack(adversary.state_dict(1)['deltas'])
    assert_same_up_to_ties(noise, moved, grad)
    assert furthest(moves(before, ours), moves(before, theirs)) < 1e-4
