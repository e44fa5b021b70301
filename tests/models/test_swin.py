"""mmdet's Swin Transformer with what it lacks; weights: test_transformers."""

from mmrobust.models.swin import SwinTransformer


def test_frozen_stages_are_frozen_before_training_mode():
    """DDP lists what learns when it wraps the model."""
    small = dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)
    for frozen, names in ((-1, set()), (1, {'patch_embed', 'stages.0', 'norm0'})):
        model = SwinTransformer(frozen_stages=frozen, **small)
        assert model.training
        before = {n for n, w in model.named_parameters() if not w.requires_grad}
        model.train()
        after = {n for n, w in model.named_parameters() if not w.requires_grad}
        assert before == after
        assert {n for n in names if any(b.startswith(n) for b in before)} == names
        assert bool(before) is bool(names)
