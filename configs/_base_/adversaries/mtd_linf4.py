# MTD (arXiv 1907.10310), linf radius 4 (of 255): per image the stronger of a one-step
# attack on the classification and one on the boxes.
adversary = dict(type='mmrobust.MTDAdversary', norm='linf', eps=4)
