"""Denoising queries of DN-DETR: noised ground truth that the decoder has to restore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.layers import CdnQueryGenerator, inverse_sigmoid
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor, nn

from ..errors import ConfigError

# A box at the image's border has no finite logit; mmdet's DINO stops at the same value.
_EPS = 1e-3


class DnQueryGenerator(CdnQueryGenerator):
    """Makes denoising queries as DN-DETR (Li et al., arXiv 2203.01305, section 4).

    mmdet's generator makes the contrastive queries of DINO; here is what differs in
    DN-DETR:

    - Every object has one query per group, a positive one. DINO adds a negative.
    - ``label_noise_scale`` is the share of labels that are replaced by a random class
      (which may be the right one). In DINO half of the scale is the share.
    - Box noise shifts the centre by up to half the box's size times the scale, and
      changes width and height by up to their size times the scale. The centre stays
      inside the image and the size is at most the image's. DINO moves the corners.
    - A query's content is its label's embedding, one value short, and an indicator in
      the last place: 1 for denoising, 0 for matching queries, whose label is an extra
      'no object' class. DINO has neither the extra class nor the indicator.
    - Either noise may be 0, which DINO's generator refuses.

    As in DN-DETR's own code, groups are padded with zero queries to the batch's largest
    number of objects, and only queries of the same group see the padding.

    Args:
        num_classes: classes without 'no object'.
        embed_dims: channels of a query.
        num_matching_queries: queries besides the denoising ones.
        label_noise_scale: share of labels to replace, 0-1.
        box_noise_scale: size of the box noise, 0-1.
        group_cfg: mmdet's settings, ``dict(dynamic=False, num_groups=5)`` for a fixed
            number of groups (by default 5), ``dict(dynamic=True, num_dn_queries=100)``
            for as many as make at most 100 queries.

    Raises:
        ConfigError: for a scale outside 0-1 or less than one group.
    """

    # No denoising queries in attacks: they draw noise, and tell the ground truth.
    attacked_in_eval = True

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_matching_queries: int,
        label_noise_scale: float = 0.2,
        box_noise_scale: float = 0.4,
        group_cfg: dict | None = None,
    ) -> None:
        scales = {'label': label_noise_scale, 'box': box_noise_scale}
        for name, scale in scales.items():
            if not 0 <= scale <= 1:
                raise ConfigError(
                    f'dn_cfg.{name}_noise_scale={scale} must lie between 0 and 1.'
                )
        group_cfg = group_cfg or {'dynamic': False, 'num_groups': 5}
        if not group_cfg.get('dynamic', True) and group_cfg.get('num_groups', 0) < 1:
            raise ConfigError(
                f'dn_cfg.group_cfg={dict(group_cfg)} has no groups: set num_groups to '
                'at least 1.'
            )
        sizes = (num_classes, embed_dims, num_matching_queries)
        super().__init__(*sizes, label_noise_scale, box_noise_scale, group_cfg)
        self.label_embedding = nn.Embedding(num_classes + 1, embed_dims - 1)

    def __call__(
        self, batch_data_samples: Sequence[Any]
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:
        """Builds the denoising queries of a batch.

        Query ``g * max_objects + i`` of an image is its object i in group g.

        Args:
            batch_data_samples: N samples with ``gt_instances`` and ``img_shape``.

        Returns:
            Contents (N, D, embed_dims), logits (N, D, 4) of boxes as cx, cy, w, h in
            shares of the image, the mask of :meth:`generate_dn_mask`, and a dict with
            ``num_denoising_queries`` (D) and ``num_denoising_groups``.
        """
        contents, boxes, mask, meta = super().__call__(batch_data_samples)
        return contents, boxes, mask, {**meta, 'num_denoising_queries': boxes.size(1)}

    def matching_content(self) -> Tensor:
        """The content (embed_dims,) that all matching queries start from."""
        return F.pad(self.label_embedding.weight[self.num_classes], (0, 1), value=0.0)

    def generate_dn_label_query(self, gt_labels: Tensor, num_groups: int) -> Tensor:
        """Labels (T,) to contents (num_groups * T, embed_dims), group by group."""
        labels = gt_labels.repeat(num_groups)
        draw = torch.rand(labels.shape, device=labels.device)
        noise = torch.randint_like(labels, self.num_classes)
        labels = torch.where(draw < self.label_noise_scale, noise, labels)
        return F.pad(self.label_embedding(labels), (0, 1), value=1.0)

    def generate_dn_bbox_query(self, gt_bboxes: Tensor, num_groups: int) -> Tensor:
        """Boxes (T, 4) as x1, y1, x2, y2 in 0-1 to logits (num_groups * T, 4)."""
        boxes = bbox_xyxy_to_cxcywh(gt_bboxes).repeat(num_groups, 1)
        size = boxes[:, 2:]
        reach = torch.cat([size / 2, size], dim=1) * self.box_noise_scale
        boxes = boxes + (torch.rand_like(boxes) * 2 - 1) * reach
        return inverse_sigmoid(boxes.clamp(0, 1), eps=_EPS)

    def collate_dn_queries(
        self,
        input_label_query: Tensor,
        input_bbox_query: Tensor,
        batch_idx: Tensor,
        batch_size: int,
        num_groups: int,
    ) -> tuple[Tensor, Tensor]:
        """Sorts the queries of all objects into images, padding with zeros.

        From contents (num_groups * T, embed_dims), logits of boxes (num_groups * T, 4)
        and the image (T,) of each object, ascending, to contents (N, D, embed_dims) and
        logits (N, D, 4), with D = num_groups * (most objects of an image).
        """
        counts = batch_idx.bincount(minlength=batch_size)
        most = int(counts.max())
        first = counts.cumsum(0) - counts
        objects = torch.arange(len(batch_idx), device=batch_idx.device)
        groups = torch.arange(num_groups, device=batch_idx.device)
        place = (groups[:, None] * most + objects - first[batch_idx]).flatten()
        image = batch_idx.repeat(num_groups)
        collated = []
        for queries in (input_label_query, input_bbox_query):
            padded = queries.new_zeros(batch_size, num_groups * most, queries.size(1))
            padded[image, place] = queries
            collated.append(padded)
        return collated[0], collated[1]

    def generate_dn_mask(
        self, max_num_target: int, num_groups: int, device: torch.device | str
    ) -> Tensor:
        """Returns a mask (Q, Q), True where a query (row) must not see one (column).

        A denoising query is hidden from other groups and from matching queries, which
        come last and are seen by all. A group has ``max_num_target`` queries.
        """
        group = torch.arange(num_groups, device=device)
        group = group.repeat_interleave(max_num_target)
        group = F.pad(group, (0, self.num_matching_queries), value=-1)
        return (group >= 0) & (group != group[:, None])
