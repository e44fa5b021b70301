# PBCAT (arXiv 2506.23581): FreeAT of linf radius 4 (of 255) with 8 replays of each
# batch, and on half of the objects a patch of radius 64, in the half of its 8 x 8 cells
# that has the largest gradients.
adversary = dict(type='mmrobust.PBCATAdversary', norm='linf', eps=4)
