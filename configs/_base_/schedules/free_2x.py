# A "2x" schedule: 2 * 12 passes, each batch used 4 times, makes 6 passes over the data.
# Use with `max_epochs={{_base_.free_2x_epochs}}` in train_cfg.
free_2x_epochs = 6
free_2x = [
    # 500 updates, as everything that counts iterations here counts updates.
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=6, milestones=[5], gamma=0.1),
]
