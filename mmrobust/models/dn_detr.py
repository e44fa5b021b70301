"""DN-DETR on mmdet's DAB-DETR: Li et al., arXiv 2203.01305."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import DABDETRHead, DINOHead
from mmdet.models.detectors import DABDETR
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor

from ..errors import ConfigError
from ..registry import MODELS
from .dn_queries import DnQueryGenerator


@MODELS.register_module()
class DNDETR(DABDETR):
    """DAB-DETR that also learns to restore noised ground truth.

    Denoising queries exist in the training loss only, and only while
    ``dn_query_generator`` is in training mode. Losses computed with the detector in
    eval mode, as an attack does it, therefore hold no label, no randomness and no
    ``dn_*`` term. They are the matching losses of training: matching queries do not
    see the denoising ones.

    Where it differs from DAB-DETR without denoising: matching queries start from the
    embedding of 'no object' instead of zeros.

    Args:
        *args: see mmdet's ``DABDETR``.
        dn_cfg: settings of :class:`DnQueryGenerator`, except the three that the
            detector knows: ``num_classes``, ``embed_dims``, ``num_matching_queries``.
        **kwargs: see mmdet's ``DABDETR``.

    Raises:
        ConfigError: for settings that do not go with denoising queries.
    """

    def __init__(self, *args: Any, dn_cfg: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        known = {
            'num_classes': self.bbox_head.num_classes,
            'embed_dims': self.embed_dims,
            'num_matching_queries': self.num_queries,
        }
        dn_cfg = dict(dn_cfg or {})
        twice = sorted(known.keys() & dn_cfg.keys())
        if twice:
            raise ConfigError(
                f'dn_cfg sets {", ".join(twice)}, which the detector sets itself: '
                'leave it out.'
            )
        if self.query_dim != 4:
            raise ConfigError(
                f'decoder.query_dim={self.query_dim} leaves no room for the size of a '
                'noised box: DN-DETR needs 4.'
            )
        if self.num_patterns:
            raise ConfigError(
                f'num_patterns={self.num_patterns} would replace the matching '
                "queries' label: DN-DETR needs 0."
            )
        self.dn_query_generator = DnQueryGenerator(**known, **dn_cfg)

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """See mmdet's ``DetectionTransformer.loss``; adds the denoising queries."""
        features = self.extract_feat(batch_inputs)
        denoising = None
        if self.dn_query_generator.training:
            denoising = self.dn_query_generator(batch_data_samples)
        outputs = self.forward_transformer(features, batch_data_samples, denoising)
        return self.bbox_head.loss(**outputs, batch_data_samples=batch_data_samples)

    def forward_transformer(
        self,
        img_feats: tuple[Tensor, ...],
        batch_data_samples: Sequence[Any] | None = None,
        denoising: tuple[Tensor, Tensor, Tensor, dict[str, int]] | None = None,
    ) -> dict[str, Any]:
        """See mmdet's ``DetectionTransformer.forward_transformer``.

        Returns:
            ``hidden_states`` (L, N, Q, C) and ``references`` (L, N, Q, 4) of all L
            decoder layers. With what :class:`DnQueryGenerator` returns as ``denoising``
            those queries are the first of Q, and ``dn_meta`` says how many.
        """
        encoder_inputs, decoder_inputs = self.pre_transformer(
            img_feats, batch_data_samples
        )
        memory = self.forward_encoder(**encoder_inputs)
        queries, outputs = self.pre_decoder(**memory)
        outputs.update(
            self.forward_decoder(**decoder_inputs, **queries, denoising=denoising)
        )
        return outputs

    def pre_decoder(self, memory: Tensor) -> tuple[dict, dict]:
        """See mmdet's ``DABDETR.pre_decoder``; queries start as 'no object'."""
        queries, outputs = super().pre_decoder(memory)
        content = self.dn_query_generator.matching_content()
        return {**queries, 'query': queries['query'] + content}, outputs

    def forward_decoder(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        memory_pos: Tensor,
        denoising: tuple[Tensor, Tensor, Tensor, dict[str, int]] | None = None,
    ) -> dict[str, Any]:
        """See :meth:`forward_transformer` and mmdet's ``DABDETR.forward_decoder``."""
        if denoising is None:
            return super().forward_decoder(
                query, query_pos, memory, memory_mask, memory_pos
            )
        contents, boxes, mask, meta = denoising
        hidden_states, references = self.decoder(
            query=torch.cat([contents, query], dim=1),
            query_pos=torch.cat([boxes, query_pos], dim=1),
            key=memory,
            key_pos=memory_pos,
            key_padding_mask=memory_mask,
            self_attn_masks=mask,
            reg_branches=self.bbox_head.fc_reg,
        )
        states = {'hidden_states': hidden_states, 'references': references}
        return {**states, 'dn_meta': meta}


@MODELS.register_module()
class DNDETRHead(DABDETRHead):
    """Head of DN-DETR: DAB-DETR's, and the losses of denoising queries.

    Those are mmdet's for DINO, with the same names, over the same loss modules as the
    matching losses. Two things differ from DINO: there are no negative queries, and
    padding of images with fewer objects is left out of the classification loss (in
    DINO it counts as background).

    mmdet averages the number of positives over processes for the box losses and, with
    ``sync_cls_avg_factor``, for the classification loss; DN-DETR's code divides by
    each process's own number.
    """

    loss_dn = DINOHead.loss_dn
    _loss_dn_single = DINOHead._loss_dn_single
    get_dn_targets = DINOHead.get_dn_targets

    def loss(
        self,
        hidden_states: Tensor,
        references: Tensor,
        batch_data_samples: Sequence[Any],
        dn_meta: dict[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of all L decoder layers.

        Args:
            hidden_states: (L, N, Q, C), denoising queries first.
            references: (L, N, Q, 4).
            batch_data_samples: N samples with ``gt_instances``.
            dn_meta: number of denoising queries and groups; ``None`` without them.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_iou`` of the last layer,
            ``d0.loss_cls`` ... of those before it; with ``dn_meta`` also
            ``dn_loss_cls``, ``d0.dn_loss_cls`` ..., zeros in a batch without objects.
        """
        if dn_meta is None:
            return super().loss(hidden_states, references, batch_data_samples)
        count = dn_meta['num_denoising_queries']
        losses = super().loss(
            hidden_states[:, :, count:], references[:, :, count:], batch_data_samples
        )
        scores, boxes = self(hidden_states[:, :, :count], references[:, :, :count])
        terms = self.loss_dn(
            scores,
            boxes,
            batch_gt_instances=[sample.gt_instances for sample in batch_data_samples],
            batch_img_metas=[sample.metainfo for sample in batch_data_samples],
            dn_meta=dn_meta,
        )
        for name, values in zip(('cls', 'bbox', 'iou'), terms, strict=True):
            losses[f'dn_loss_{name}'] = values[-1]
            for layer, value in enumerate(values[:-1]):
                losses[f'd{layer}.dn_loss_{name}'] = value
        return losses

    def _get_dn_targets_single(
        self, gt_instances: Any, img_meta: dict, dn_meta: dict[str, int]
    ) -> tuple[Tensor, ...]:
        """Targets of one image's D denoising queries, in the generator's order.

        Returns:
            Labels (D,) and their weights, boxes (D, 4) as cx, cy, w, h in 0-1 and
            their weights, indices of positive and of negative queries (none).
        """
        groups = dn_meta['num_denoising_groups']
        shape = (groups, dn_meta['num_denoising_queries'] // groups)
        objects = gt_instances.bboxes
        height, width = img_meta['img_shape']
        scale = objects.new_tensor([width, height, width, height])
        real = slice(len(objects))  # the rest of a group is padding

        labels = gt_instances.labels.new_full(shape, self.num_classes)
        labels[:, real] = gt_instances.labels
        boxes = objects.new_zeros(*shape, 4)
        boxes[:, real] = bbox_xyxy_to_cxcywh(objects / scale)
        weights = objects.new_zeros(shape)
        weights[:, real] = 1
        weights = weights.flatten()
        positive = weights.nonzero().squeeze(1)
        return (
            labels.flatten(),
            weights,
            boxes.flatten(0, 1),
            weights[:, None].expand(-1, 4),
            positive,
            positive[:0],
        )
