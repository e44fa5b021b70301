# Standard training in the same loop, as the control.
adversary = dict(type='mmrobust.NoAdversary')
