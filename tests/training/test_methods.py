"""MTD, CWAT, mixed batches and the control, on examples computed by hand."""

from copy import deepcopy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import InstanceData
from mmrobust.attacks import PGD
from mmrobust.batch import float_images
from mmrobust.training import (
    CWATAdversary,
    FreeAdversary,
    MTDAdversary,
    PGDAdversary,
)
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective, loss_mode
from torch import nn
from updates import (
    Linear,
    linear_batch,
    make_batch,
    make_model,
    sgd,
    train,
    watch_inputs,
)


def test_mtd_takes_the_stronger_attack_image_by_image():
    """One step from the image: it moves by eps along the sign of a task's gradient.

    First image: along cls the total rises by 4 * ((2 + 1 + 1) + (1 + 1 - 3)) = 12,
    along reg by 4 * ((1 + 1 + 3) + (2 + 1 - 1)) = 28. Second image: the same with the
    tasks exchanged.
    """
    weak, strong = [2.0, 1, 1], [1.0, 1, -3]
    batch = linear_batch((weak, strong), (strong, weak))
    model = Linear()
    seen = []
    model.data_preprocessor.register_forward_pre_hook(
        lambda module, args: seen.append([i.clone() for i in args[0]['inputs']])
    )
    MTDAdversary(eps=4, random_start=False).train_step(model, sgd(model), batch, 0)
    learnt = seen[-1]
    expected = torch.tensor([104.0, 104, 96]).view(3, 1, 1)
    assert torch.equal(learnt[0], expected)  # the sign of reg, not (+, +, +) of cls
    assert torch.equal(learnt[1], expected)  # the sign of cls
    # Two gradients of the batch, two values for each of two images, one update.
    assert len(seen) == 2 + 4 + 1


def test_mtd_on_a_detector_is_the_choice_made_by_hand():
    batch = make_batch([(64, 96), (80, 64), (96, 64)], 0)
    model = make_model()
    reference = deepcopy(model)
    clean = float_images(batch, 'cpu')
    candidates = []
    with loss_mode(reference):
        for task in ('cls', 'reg'):
            oracle = LossOracle(
                reference, batch, batch['data_samples'], Objective(task), False
            )
            attack = PGD(eps=8, num_steps=2, random_start=False, keep_best=False)
            candidates.append(attack.perturb(oracle, clean, torch.Generator()))
        totals = torch.zeros(2, 3)
        for task in range(2):
            for i in range(3):
                data = dict(
                    inputs=[candidates[task][i]],
                    data_samples=[batch['data_samples'][i]],
                )
                data = reference.data_preprocessor(data, False)
                losses = reference(**data, mode='loss')
                totals[task, i] = sum(losses.values()).detach()
    expected = [candidates[int(totals[1, i] > totals[0, i])][i] for i in range(3)]
    seen = watch_inputs(model)
    adversary = MTDAdversary(eps=8, num_steps=2, random_start=False)
    adversary.train_step(model, sgd(model), batch, 0)
    for i in range(3):
        assert torch.equal(seen[-1][i], expected[i])
    assert not torch.equal(candidates[0][0], candidates[1][0])


def test_mtd_starts_both_attacks_at_one_point():
    batch = linear_batch(([1.0, 1, 1], [1.0, 1, 1]))
    model = Linear()
    seen = []
    model.data_preprocessor.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]['inputs'][0].detach().clone())
    )
    MTDAdversary(eps=4).train_step(model, sgd(model), batch, 0)
    assert torch.equal(seen[0], seen[1])
    assert 0 < (seen[0] - 100).abs().max() <= 4


class Head(nn.Module):
    """The part of a head that class weights look for."""

    def __init__(self, num_classes=3):
        super().__init__()
        from mmdet.models.losses import CrossEntropyLoss

        self.num_classes = num_classes
        self.loss_cls = CrossEntropyLoss(use_sigmoid=False)


class Counting(BaseModel):
    """Cross entropy of one logit vector for each object: the image's pixels."""

    def __init__(self):
        super().__init__(BaseDataPreprocessor(non_blocking=False))
        self.head = Head()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs, data_samples, mode):
        logits, labels = [], []
        for image, sample in zip(inputs, data_samples, strict=True):
            for label in sample.gt_instances.labels:
                logits.append(self.weight * image.flatten() / 255)
                labels.append(label)
        loss = self.head.loss_cls(
            torch.stack(logits), torch.stack(labels), avg_factor=1.0
        )
        return {'loss_cls': loss}


def counting_batch(*labels):
    samples = []
    for one in labels:
        sample = DetDataSample()
        sample.gt_instances = InstanceData(
            labels=torch.tensor(one), bboxes=torch.zeros(len(one), 4)
        )
        samples.append(sample)
    # Four logits: three classes and the background.
    images = [
        torch.tensor([10, 60, 200, 90], dtype=torch.uint8).view(1, 2, 2) for _ in labels
    ]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize(
    ('weighting', 'weights'),
    [
        # Objects of the batch 3, 1, 0: inverses 4/3 and 4, mean 8/3.
        ('batch', [0.5, 1.5, 1.0]),
        # Of the training set 1, 1, 2: inverses 4, 4, 2, mean 10/3.
        ('dataset', [1.2, 1.2, 0.6]),
    ],
)
def test_cwat_weights_the_objects_of_every_class(weighting, weights):
    """In the attack and in the update; the losses by hand."""
    batch = counting_batch([0, 0], [0, 1])
    model = Counting()
    adversary = CWATAdversary(
        eps=8, step_size=2, random_start=False, class_weighting=weighting
    )

    class Dataset:
        def __len__(self):
            return 2

        def get_data_info(self, index):
            labels = [[0, 1], [2, 2]][index]
            return dict(instances=[dict(bbox_label=label) for label in labels])

    adversary.prepare(Dataset())
    seen = []
    model.data_preprocessor.register_forward_pre_hook(
        lambda module, args: seen.append(
            [i.detach().clone() for i in args[0]['inputs']]
        )
    )
    outputs = adversary.train_step(model, sgd(model), batch, 0)

    def loss(images):
        total = torch.zeros(())
        for image, labels in zip(images, ([0, 0], [0, 1]), strict=True):
            log = (image.flatten() / 255).log_softmax(0)
            for label in labels:
                total = total - weights[label] * log[label]
        return total

    leaves = [image.float().requires_grad_() for image in batch['inputs']]
    grads = torch.autograd.grad(loss(leaves), leaves)
    for i in range(2):
        expected = batch['inputs'][i].float() + 2 * grads[i].sign()
        assert torch.equal(seen[-1][i], expected)
    torch.testing.assert_close(outputs['loss'], loss(seen[-1]).detach())
    # The hooks are gone.
    data = model.data_preprocessor(batch)
    plain = model(**data, mode='loss')['loss_cls']
    weighted = loss([image.float() for image in batch['inputs']])
    assert float(plain) != pytest.approx(float(weighted), rel=1e-3)


def test_class_weighting_needs_one_number_of_classes():
    model = Counting()
    model.other = Head(num_classes=5)
    with pytest.raises(ConfigError, match=r'heads for \[3, 5\] classes'):
        CWATAdversary().train_step(model, sgd(model), counting_batch([0]), 0)
    with pytest.raises(ConfigError, match='has none'):
        CWATAdversary().train_step(
            Linear(), None, linear_batch(([1.0, 1, 1], [1.0, 1, 1])), 0
        )


@pytest.mark.parametrize('kind', [FreeAdversary, PGDAdversary, MTDAdversary])
def test_a_share_of_the_images_is_adversarial(kind):
    """The others are the clean ones, the choice is the seed's, replays share it."""
    batches = [make_batch([(64, 96), (80, 64), (64, 64)], seed) for seed in range(4)]
    settings = dict(eps=8, share=0.5)
    if kind is FreeAdversary:
        settings.update(replays=3, carry='run')
    torch.manual_seed(1)
    adversary = kind(**settings)
    model = make_model()
    chosen = [adversary.chosen(n * adversary.replays, 3) for n in range(4)]
    assert any(0 < len(batch) < 3 for batch in chosen)
    seen = []

    def note(data, optim_wrapper):
        seen.append([image.detach().clone() for image in data['inputs']])
        return stock(data, optim_wrapper=optim_wrapper)

    stock, model.train_step = model.train_step, note
    train(adversary, model, batches)
    assert len(seen) == 4 * adversary.replays
    for update, images in enumerate(seen):
        batch = update // adversary.replays
        for slot, image in enumerate(images):
            distance = float((image - batches[batch]['inputs'][slot]).abs().max())
            if slot not in chosen[batch]:
                assert distance == 0
            elif update > 0:
                # FreeAT's slot is still at zero until it was chosen once.
                assert distance > 0 or kind is FreeAdversary
    if kind is FreeAdversary:
        last = adversary.replays * 3 + 2
        for slot in chosen[3]:
            assert (seen[last][slot] - batches[3]['inputs'][slot]).abs().max() > 0


def test_the_share_is_right_on_average():
    torch.manual_seed(0)
    adversary = FreeAdversary(share=0.3, replays=4)
    draws = [adversary.chosen(4 * n, 8) for n in range(500)]
    mean = sum(map(len, draws)) / 4000
    assert mean == pytest.approx(0.3, abs=0.03)  # four standard deviations
    assert adversary.chosen(7, 8) == adversary.chosen(4, 8)
    assert FreeAdversary().chosen(0, 8) == list(range(8))


def test_cls_plus_reg_is_the_sum_of_the_two():
    losses = {'loss_cls': torch.tensor(2.0), 'loss_bbox': torch.tensor(3.0)}
    losses['loss_centerness'] = torch.tensor(7.0)
    assert float(Objective('cls+reg')(losses)) == 5
    assert float(Objective()(losses)) == 12
