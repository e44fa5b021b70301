# The short version of the recipe: 50 epochs, the learning rate rises over 10.
_base_ = './heavy.py'

train_cfg = dict(max_epochs=50)
param_scheduler = {{_base_.short_schedule}}
