"""Analyses stored detections: average precision, worst cases, errors, intervals.

Pure functions of detections and ground truth; no model and no loop is involved.
"""

from __future__ import annotations

from .average_precision import CocoSummary, FastAP, coco_ap, mean_ap
from .calibration import calibration, class_matches, deployed_thresholds
from .detections import IOU_TYPES, Detections, GroundTruth
from .error_types import SCORE_THR, ErrorCounts, count_errors
from .image_score import broken, image_score, image_scores, worst_per_image
from .intervals import (
    Interval,
    difference_interval,
    map_interval,
    map_values,
    mean_intervals,
    worst_case_intervals,
)
from .masks import Masks
from .matching import MatchTable, combine, match_detections, restrict
from .panoptic import (
    PanopticCounts,
    PanopticTable,
    Segments,
    panoptic_quality,
    pq_difference,
    pq_interval,
    worst_case_pq,
    worst_case_pq_intervals,
)
from .patches import EDGES, PatchFigures, patch_figures
from .stored_tables import read_tables, write_tables
from .voc import match_as_voc
from .worst_case import WorstCase, worst_case_map

__all__ = [
    'EDGES',
    'IOU_TYPES',
    'SCORE_THR',
    'CocoSummary',
    'Detections',
    'ErrorCounts',
    'FastAP',
    'GroundTruth',
    'Interval',
    'Masks',
    'MatchTable',
    'PanopticCounts',
    'PanopticTable',
    'PatchFigures',
    'Segments',
    'WorstCase',
    'broken',
    'calibration',
    'class_matches',
    'coco_ap',
    'combine',
    'count_errors',
    'deployed_thresholds',
    'difference_interval',
    'image_score',
    'image_scores',
    'map_interval',
    'map_values',
    'match_as_voc',
    'match_detections',
    'mean_ap',
    'mean_intervals',
    'panoptic_quality',
    'patch_figures',
    'pq_difference',
    'pq_interval',
    'read_tables',
    'restrict',
    'worst_case_intervals',
    'worst_case_map',
    'worst_case_pq',
    'worst_case_pq_intervals',
    'worst_per_image',
    'write_tables',
]
