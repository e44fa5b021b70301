"""Imports of mmpretrain beside a transformers that it does not know.

mmdet imports mmpretrain, and mmpretrain 1.2.0 its models of pictures and text wherever
transformers is installed, from which newer versions took functions that these need. So
no detector could be built, whether it reads texts or not.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

# What they import from transformers.modeling_utils: all there up to 4.50 or so, not all
# in 4.53, fewer in 4.57.
NEEDED = (
    'GenerationConfig',
    'GenerationMixin',
    'PreTrainedModel',
    'apply_chunking_to_forward',
    'find_pruneable_heads_and_indices',
    'prune_linear_layer',
)


def leave_out_multimodal() -> None:
    """Has mmpretrain do without those models, as it does without transformers.

    Called when ``mmpretrain.utils.dependency`` has been imported.
    """
    dependency: Any = sys.modules['mmpretrain.utils.dependency']
    if not dependency.WITH_MULTIMODAL:
        return
    try:
        utils = importlib.import_module('transformers.modeling_utils')
    except Exception:  # of other packages' versions, too
        dependency.WITH_MULTIMODAL = False
        return
    # Of what they take from elsewhere in transformers, nothing was missing alone.
    dependency.WITH_MULTIMODAL = all(hasattr(utils, name) for name in NEEDED)
