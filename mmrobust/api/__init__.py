"""Attacks and evaluations from Python: what the package offers at its top."""

from .attack import attack
from .attacked import AttackedImage, AttackedImages
from .comparison import Comparison
from .evaluate import evaluate
from .leaderboard import leaderboard
from .maite import MaiteAttack, MaiteModel
from .report import Report, load
from .requirements import Requirement, check
from .verification import Verification, verify

__all__ = [
    'AttackedImage',
    'AttackedImages',
    'Comparison',
    'MaiteAttack',
    'MaiteModel',
    'Report',
    'Requirement',
    'Verification',
    'attack',
    'check',
    'evaluate',
    'leaderboard',
    'load',
    'verify',
]
