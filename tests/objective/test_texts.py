"""Detectors that read their classes from text: scores, prompts, chunks and weights."""

from copy import deepcopy

import pytest
import torch
import words
from mmdet.models.dense_heads.atss_vlfusion_head import convert_grounding_to_cls_scores
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from mmrobust import robustify
from mmrobust.batch import float_images
from mmrobust.errors import ConfigError
from mmrobust.objective import LossOracle, Objective, loss_mode, make_oracle
from mmrobust.objective.texts import class_logits, class_tokens
from mmrobust.registry import ADVERSARIES

NAMES = ('person', 'traffic light', 'dog', 'cup')


@pytest.fixture(scope='module')
def detector():
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(ConfigDict(words.grounding_dino()))
    model.init_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return model.eval()


@pytest.fixture
def model(detector):
    own = deepcopy(detector.test_cfg)
    yield detector
    detector.test_cfg = own


def sample(labels, **meta):
    boxes = torch.tensor([[4.0, 6, 30, 40], [20, 10, 60, 44], [2, 2, 20, 20]])
    truth = InstanceData(bboxes=boxes[: len(labels)], labels=torch.tensor(labels))
    size = (48, 64)
    meta = {'text': NAMES, 'custom_entities': True, **meta}
    info = dict(img_id=1, ori_shape=size, img_shape=size, scale_factor=(1.0, 1.0))
    found = DetDataSample(gt_instances=truth, metainfo={**info, **meta})
    found.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()
    )
    return found


def batch(*samples):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(samples), 3, 48, 64), generator=generator)
    return dict(inputs=list(images.to(torch.uint8)), data_samples=list(samples))


def losses(model, *samples):
    """mmdet's own, of the batch at once, without what denoising draws."""
    ready = model.data_preprocessor(deepcopy(batch(*samples)))
    return {
        k: float(v) for k, v in model(**ready, mode='loss').items() if 'dn' not in k
    }


def asked(model, objective, *samples, weights=None):
    data = batch(*samples)
    with loss_mode(model):
        target = Objective(objective, class_weights=weights)
        oracle = make_oracle(model, data, list(samples), target)
        values, grads = oracle.value_and_grad(float_images(data, 'cpu'))
        assert torch.equal(oracle.value(float_images(data, 'cpu')), values)
    assert all(grad.isfinite().all() for grad in grads)
    return values, grads


@pytest.mark.parametrize('scale', [1.0, 40.0])
def test_a_class_scores_as_in_mmdets_predictions(scale):
    generator = torch.Generator().manual_seed(0)
    tokens = scale * torch.randn(5, 7, generator=generator).double()
    places = {1: [0, 1], 2: [3], 3: [4, 5, 6]}
    mask = torch.zeros(3, 7, dtype=torch.bool)
    for label, own in places.items():
        mask[label - 1, own] = True
    wanted = convert_grounding_to_cls_scores(tokens.sigmoid()[None], [places])[0]
    found = class_logits(tokens, mask).sigmoid()
    torch.testing.assert_close(found, wanted.double())


def test_tokens_of_classes_are_those_of_their_letters(model):
    # [CLS] pers on . traf fic ligh t . dog . cup .
    mask = class_tokens(model, sample([0]))
    assert [row.nonzero().flatten().tolist() for row in mask] == [
        [1, 2],
        [4, 5, 6, 7],
        [9],
        [11],
    ]
    phrase = sample([0], text='a dog. a cup.', tokens_positive=[[[2, 5]], [[9, 12]]])
    mask = class_tokens(model, phrase)
    assert [row.nonzero().flatten().tolist() for row in mask] == [[2], [5]]


@pytest.mark.parametrize('per_image', [True, False])
def test_background_reads_the_class_scores_of_what_is_assigned(model, per_image):
    """By hand: the head's last scores and its own assignment, with unequal texts."""
    truths = (sample([1, 2]), sample([3], text=('cup', 'person', 'a', 'dog', 'sea')))
    data, seen = batch(*truths), []
    head = model.bbox_head
    hook = head.register_forward_hook(lambda module, args, out: seen.append(out))
    with loss_mode(model):
        objective = Objective('background')
        oracle = LossOracle(model, data, list(truths), objective, per_image)
        value = oracle.value(float_images(data, 'cpu'))
    hook.remove()
    # Denoising queries come first.
    scores = torch.cat([out[0][-1][:, -10:] for out in seen]).double()
    boxes = torch.cat([out[1][-1][:, -10:] for out in seen])
    wanted = []
    for truth, logits, box in zip(truths, scores, boxes, strict=True):
        instances = deepcopy(truth.gt_instances)
        mask = class_tokens(model, truth)
        instances.positive_maps = mask[instances.labels].float()
        instances.text_token_mask = (logits[0] > -1e9).repeat(len(instances), 1)
        found = head._get_targets_single(logits.float(), box, instances, truth.metainfo)
        own = [logits.sigmoid()[:, tokens].mean(1) for tokens in mask]
        chances = torch.stack(own, dim=1)[found[0].sum(1) > 0]
        assert len(chances) == len(instances)
        wanted.append((1 - chances).log().sum())
    if not per_image:
        wanted = [sum(wanted)]
    assert value.tolist() == pytest.approx([float(each) for each in wanted], rel=1e-4)


def test_mislabel_lowers_the_loss_of_other_words(model):
    truth = sample([1, 2])
    values, grads = asked(model, {'name': 'mislabel', 'target': 'next'}, truth)
    with loss_mode(model):
        wanted = losses(model, sample([2, 3]))['loss_cls']
    assert float(values) == pytest.approx(-wanted, rel=1e-5)
    assert grads[0].abs().sum() > 0
    # The likely one is another one, read off the scores of what stands for objects.
    likely, _ = asked(model, 'mislabel', sample([1]))
    with loss_mode(model):
        every = [-losses(model, sample([label]))['loss_cls'] for label in (0, 2, 3)]
    assert min(abs(float(likely) - each) for each in every) < 1e-5


@pytest.mark.parametrize('name', ['total', 'vanish', 'background', 'ranking'])
@pytest.mark.parametrize('size', [-1, 3])
def test_every_objective_has_a_gradient_with_all_classes_or_some_at_a_time(
    model, name, size
):
    model.test_cfg = dict(max_per_img=10, chunked_size=size)
    values, grads = asked(model, name, sample([1, 3]))
    assert values.isfinite().all()
    assert grads[0].abs().sum() > 0


def test_losses_of_chunks_are_those_of_their_own_classes(model):
    model.test_cfg = dict(max_per_img=10, chunked_size=3)
    passes = []
    hook = model.backbone.register_forward_hook(lambda *_: passes.append(1))
    values, _ = asked(model, 'total', sample([1, 3, 2]))
    hook.remove()
    assert len(passes) == 2  # with and without gradients, and not once for each chunk
    model.test_cfg = dict(max_per_img=10)
    first, second = sample([1, 2], text=NAMES[:3]), sample([0], text=NAMES[3:])
    # The boxes of the second object: that of the third one stands for class 2.
    first.gt_instances.bboxes = sample([0, 0, 0]).gt_instances.bboxes[[0, 2]]
    second.gt_instances.bboxes = sample([0, 0, 0]).gt_instances.bboxes[[1]]
    with loss_mode(model):
        parts = [losses(model, each) for each in (first, second)]
    wanted = sum(v for part in parts for k, v in part.items() if 'loss' in k)
    assert float(values) == pytest.approx(wanted, rel=1e-5)


def test_descriptions_of_classes_are_those_of_predictions(model):
    prompt = {'dog': {'prefix': 'small ', 'name': 'hound', 'suffix': ' of fur'}}
    seen = []
    hook = model.language_model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    asked(model, 'cls', sample([1], caption_prompt=prompt))
    with torch.no_grad():
        model.test_step(batch(sample([1], caption_prompt=prompt)))
    hook.remove()
    text = 'person. traffic light. small hound of fur. cup. '
    assert [list(each) for each in seen] == [[text]] * 3


def test_a_prompt_that_is_cut_off_is_refused(model):
    many = tuple(f'thing{index}' for index in range(30))
    with pytest.raises(ConfigError, match=r"'thing.*chunked_size, for instance"):
        asked(model, 'total', sample([29], text=many))
    model.test_cfg = dict(max_per_img=10, chunked_size=10)
    values, grads = asked(model, 'cls', sample([29], text=many))
    assert values.isfinite().all()
    assert grads[0].abs().sum() > 0
    with pytest.raises(ConfigError, match='tokens_positive=-1'):
        asked(model, 'total', sample([0], text='a dog.', tokens_positive=-1))


def test_class_weights_count_the_tokens_of_a_class(model):
    """The weighted loss is linear in the weights, and with ones it is the loss."""
    truth = sample([1, 2])
    found = [
        float(asked(model, 'cwa', truth, weights=torch.tensor(each))[0])
        for each in ([1.0] * 4, [3.0, 1, 1, 1], [1.0, 3, 1, 1], [3.0, 3, 1, 1])
    ]
    plain = float(asked(model, 'cls+reg', truth)[0])
    assert found[0] == pytest.approx(plain, rel=1e-5)
    gains = [each - found[0] for each in found]
    assert gains[1] > 1e-6
    assert gains[2] > 1e-6
    assert gains[3] == pytest.approx(gains[1] + gains[2], rel=1e-4)
    with pytest.raises(ConfigError, match='text of an image has 4'):
        asked(model, 'cwa', truth, weights=torch.ones(3))


def test_the_recipe_slows_down_the_backbone_that_sees(detector):
    """The language model learns as the config says, and not at all if it says so."""
    cfg = robustify(
        'mmdet::grounding_dino/grounding_dino_swin-t_finetune_16xb2_1x_coco.py'
    )
    rules = cfg.optim_wrapper.paramwise_cfg
    assert rules.custom_keys.backbone.lr_mult == 0.1  # of both
    model = deepcopy(detector).train()
    names = {id(weight): name for name, weight in model.named_parameters()}

    def rates():
        wrapper = build_optim_wrapper(model, deepcopy(cfg.optim_wrapper))
        groups = wrapper.optimizer.param_groups
        found = {names[id(g['params'][0])].split('.')[0]: g['lr'] for g in groups}
        return wrapper, found

    _, found = rates()
    whole = found['bbox_head']
    assert found['language_model'] == pytest.approx(0.1 * whole)
    assert found['backbone'] == pytest.approx(0.01 * whole)
    rules.custom_keys.language_model = dict(lr_mult=0.0)
    wrapper, found = rates()
    assert found['language_model'] == 0
    assert found['backbone'] == pytest.approx(0.01 * whole)
    before = {name: value.clone() for name, value in model.named_parameters()}
    adversary = ADVERSARIES.build(cfg.train_cfg.adversary)
    adversary.train_step(model, wrapper, batch(sample([1]), sample([2, 3])), 0)
    assert all(delta.abs().sum() > 0 for delta in adversary.state_dict(0)['deltas'])
    after = dict(model.named_parameters())
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert all(name in same for name in before if name.startswith('language_model'))
    assert 'backbone.layer4.0.conv1.weight' not in same


def test_a_batch_of_unequal_texts_has_no_labels_to_change(model):
    truths = [sample([1, 2]), sample([0], text=('sea', 'cat'))]
    with pytest.raises(ConfigError, match='same classes in their text'):
        Objective('mislabel').targets(model, None, truths)
    assert Objective({'name': 'mislabel', 'target': 'next'}).targets(
        model, None, truths[1:]
    ).tolist() == [1, 0]
