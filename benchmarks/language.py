"""A language model of a few words, in the place of a BERT that would be downloaded."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path
from shutil import rmtree

import torch

# What images are said to show; a class of two words, and one of two pieces of words.
CLASSES = ('person', 'traffic light', 'dog', 'cup')
_PIECES = ('person', 'traffic', 'light', 'do', '##g', 'cup', '.', '?')


@cache
def tiny_bert() -> str:
    """Writes a BERT of two layers with random weights, and returns its folder.

    Raises:
        ImportError: without the package transformers.
    """
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = Path(tempfile.mkdtemp())
    atexit.register(rmtree, folder, ignore_errors=True)
    words = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *_PIECES)
    vocabulary = folder / 'vocab.txt'
    vocabulary.write_text('\n'.join(words) + '\n', encoding='utf-8')
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    sizes = {'hidden_size': 32, 'intermediate_size': 32, 'num_attention_heads': 2}
    config = BertConfig(vocab_size=len(words), num_hidden_layers=2, **sizes)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return str(folder)
