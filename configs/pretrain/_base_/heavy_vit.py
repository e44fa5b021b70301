# The recipe for ViTs: norms, biases and layer scales do not decay; position embedding
# and class token do.
_base_ = './heavy.py'

optim_wrapper = dict(
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'.gamma': dict(decay_mult=0.0)},
    )
)
