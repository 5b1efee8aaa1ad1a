"""A tokenizer fitted on the org's own texts: byte-pair encoding over letters of any script (`tokenizers`).

Sennrich, Haddow & Birch 2016. Saved as the JSON of the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

PADDING, UNKNOWN = 0, 1
"""ids of the first two entries of the vocabulary"""
SAMPLE_TEXTS = 200_000
"""texts that a vocabulary is learned from, evenly taken"""


def fit(texts: Sequence[str], *, vocabulary: int, min_count: int = 2) -> str:
    """A tokenizer of at most `vocabulary` entries, as JSON."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # The space before a word is a character of it. (A suffix at its end would make the vocabulary's order random.)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=min_count, special_tokens=["[PAD]", "[UNK]"], show_progress=False,
        limit_alphabet=vocabulary // 2,
    )  # fmt: skip
    step = max(1, len(texts) // SAMPLE_TEXTS)
    tokenizer.train_from_iterator(texts[::step], trainer)
    return tokenizer.to_str()


def ids(tokenizer: str, texts: Sequence[str], max_tokens: int, *, special: bool = False) -> list[list[int]]:
    """The first max_tokens ids of each text; a text without a known letter has the one id UNKNOWN.

    special: with the tokens that a BERT wants at both ends.
    """
    loaded = _loaded(tokenizer)
    loaded.enable_truncation(max_tokens)
    made = loaded.encode_batch(list(texts), add_special_tokens=special)
    return [one.ids or [UNKNOWN] for one in made]


def size(tokenizer: str) -> int:
    """Entries of the vocabulary."""
    return _loaded(tokenizer).get_vocab_size()


@lru_cache(maxsize=4)
def _loaded(tokenizer: str) -> Any:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_str(tokenizer)
    loaded.no_padding()  # a published tokenizer may pad all texts to one length
    return loaded
