"""A detector that reads its classes from text, with words in the place of a BERT."""

from __future__ import annotations

import re
from typing import Any

import tiny
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

WIDTH, LENGTH = 16, 64


class Tokens:
    """Texts as tokens: pieces of up to four letters, dots, and a mark at both ends."""

    def __init__(self, texts: list[str], longest: int | None = None) -> None:
        self.places = [
            [match.span() for match in re.finditer(r'\w{1,4}|[.?]', text)]
            for text in texts
        ]
        rows = [
            [1, *map(self._number, self._pieces(i, text)), 2]
            for i, text in enumerate(texts)
        ]
        rows = [row[:longest] for row in rows]
        length = max(map(len, rows))
        padded = [row + [0] * (length - len(row)) for row in rows]
        self.input_ids = torch.tensor(padded)

    def _pieces(self, index: int, text: str) -> list[str]:
        return [text[start:stop] for start, stop in self.places[index]]

    @staticmethod
    def _number(piece: str) -> int:
        return 3 if piece in '.?' else 4 + sum(map(ord, piece)) % 60

    def char_to_token(self, char: int) -> int | None:
        """The place of the token that a character of the first text belongs to."""
        for place, (start, stop) in enumerate(self.places[0]):
            if start <= char < stop:
                return place + 1
        return None


@MODELS.register_module(force=True)
class Words(nn.Module):
    """Stands in for mmdet's BertModel: the same outputs, of a layer of embeddings."""

    max_tokens, pad_to_max = LENGTH, False

    def __init__(self) -> None:
        super().__init__()
        body = nn.Embedding(64, WIDTH)
        body.language_dim = WIDTH
        self.language_backbone = nn.ModuleDict(dict(body=body))

    def tokenizer(self, texts: list[str], **kwargs: Any) -> Tokens:
        """Makes tokens of texts."""
        return Tokens(texts)

    def forward(self, texts: list[str]) -> dict[str, Tensor]:
        """Embeds texts."""
        tokens = Tokens(texts, self.max_tokens).input_ids
        shown = tokens > 0
        return dict(
            embedded=self.language_backbone.body(tokens),
            # A token of padding attends to itself alone.
            masks=(shown[:, :, None] & shown[:, None])
            | torch.eye(tokens.shape[1]).bool(),
            hidden=self.language_backbone.body(tokens),
            position_ids=torch.arange(tokens.shape[1]).repeat(len(tokens), 1),
            text_token_mask=shown,
        )


def grounding_dino() -> dict:
    """Grounding DINO, whose classes are those of the text of an image."""
    config = 'grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco.py'
    model = tiny.mmdet_model(config)
    model['language_model'] = dict(type='Words')
    model['bbox_head'].update(num_classes=40, contrastive_cfg=dict(max_text_len=LENGTH))
    model['encoder']['num_layers'] = model['decoder']['num_layers'] = 1
    model['encoder']['num_cp'] = 0
    model['encoder']['text_layer_cfg']['ffn_cfg']['feedforward_channels'] = 32
    model['encoder']['fusion_layer_cfg']['embed_dim'] = 32
    return model
