"""A BERT from `transformers`, frozen: hidden states of tokens and embeddings of whole texts, each text computed once.

The encoder is named by a hub id or a local folder in the transformers format. What it says of a text is kept in this
process (least recently used goes first), so that several fits, or several dates of the same texts, pay for it once.

Shapes: N texts, T tokens of a text, E tokens of all texts, D width of the encoder.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from crmray import log
from crmray.errors import ConfigError

MAX_TOKENS = 256
"""of a text that the encoder reads"""
BATCH_TOKENS = 4_096
"""in one forward pass: texts of similar length, padding counted"""
CACHE_BYTES = 2**29
"""kept of each kind of answer, in this process"""


class _Cache:
    """Arrays by key, the least recently used thrown out above CACHE_BYTES."""

    def __init__(self) -> None:
        self.kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self.num_bytes = 0

    def get(self, key: bytes) -> np.ndarray | None:
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def put(self, key: bytes, value: np.ndarray) -> None:
        self.kept[key] = value
        self.num_bytes += value.nbytes
        while self.num_bytes > CACHE_BYTES and len(self.kept) > 1:
            self.num_bytes -= self.kept.popitem(last=False)[1].nbytes


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A loaded encoder."""

    name: str
    """hub id or folder"""
    tokenizer: Any
    """its tokenizer (`transformers`)"""
    model: Any
    """its weights, in evaluation mode, on the CPU or on the GPU where there is one"""
    _states: _Cache = field(default_factory=_Cache, repr=False)
    _embeddings: _Cache = field(default_factory=_Cache, repr=False)

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.hidden_size)

    def states(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> list[np.ndarray]:
        """Of each text the hidden states of its tokens, float16 (T, D), special tokens included, cut at max_tokens or
        at what the encoder can read."""
        return self._each(texts, self._states, max_tokens, lambda states_TD: states_TD.astype(np.float16))

    def embeddings(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, D): the mean of each text's hidden states, of length 1."""
        found = self._each(texts, self._embeddings, MAX_TOKENS, _embedding)
        return np.stack(found) if found else np.zeros((0, self.width), np.float32)

    def _each(self, texts: Sequence[str], cache: _Cache, max_tokens: int, keep: Any) -> list[np.ndarray]:
        keys = [hashlib.blake2b(f"{max_tokens} {text}".encode(), digest_size=16).digest() for text in texts]
        found: dict[bytes, np.ndarray] = {}
        missing: dict[bytes, str] = {}
        for key, text in zip(keys, texts, strict=True):
            value = cache.get(key)
            if value is None:
                missing[key] = text
            else:
                found[key] = value
        for key, states_TD in self._computed(missing, max_tokens):
            found[key] = keep(states_TD)
            cache.put(key, found[key])
        return [found[key] for key in keys]

    def _computed(self, texts: dict[bytes, str], max_tokens: int) -> Any:
        """Pairs of key and hidden states float32 (T, D); texts of one length share a pass, so that no answer depends
        on the padding beside it."""
        import torch

        keys = list(texts)
        if not keys:
            return
        most = min(max_tokens, self.tokenizer.model_max_length)
        encoded = self.tokenizer([texts[key] for key in keys], truncation=True, max_length=most)["input_ids"]
        order = sorted(range(len(keys)), key=lambda i: len(encoded[i]))
        device = next(self.model.parameters()).device
        with torch.inference_mode(), log.progress("encode", total=len(keys), unit="texts") as bar:
            for batch in _batches(order, encoded):
                ids_BT = torch.tensor([encoded[i] for i in batch], device=device)
                states_BTD = self.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).last_hidden_state
                for i, states_TD in zip(batch, states_BTD.float().cpu().numpy(), strict=True):
                    yield keys[i], states_TD
                bar.advance(len(batch))


def _batches(order: list[int], encoded: list[list[int]]) -> Any:
    """Runs of texts of one length, of at most BATCH_TOKENS tokens."""
    batch: list[int] = []
    for i in order:
        length = len(encoded[i])
        if batch and (length != len(encoded[batch[0]]) or (len(batch) + 1) * length > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _embedding(states_TD: np.ndarray) -> np.ndarray:
    mean_D = states_TD.mean(0)
    return mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)


@lru_cache(maxsize=2)
def load(name: str) -> Encoder:
    """The encoder of this name. ConfigError when it cannot be had."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"encoder: got {name!r}, expected the hub id or the local folder of a BERT in the transformers format"
            f" that this machine can read ({first})"
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    log.event("encoder", width=int(model.config.hidden_size), device=device)
    return Encoder(name=name, tokenizer=tokenizer, model=model.eval().to(device))


def published(name: str) -> Any:
    """A copy of the encoder's weights, to be trained further."""
    return copy.deepcopy(load(name).model).cpu()


def empty(config: Mapping[str, Any]) -> Any:
    """An encoder of this configuration, its weights to be filled in."""
    from transformers import AutoConfig, AutoModel

    rest = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModel.from_config(AutoConfig.for_model(config["model_type"], **rest))


def embedded(rows: pa.Table, name: str) -> pa.Table:
    """The rows with the embedding of their `text` as `text_embedding` (list<float>); as they are without an encoder."""
    if not name:
        return rows
    encoder = load(name)
    flat = pa.array(encoder.embeddings(rows["text"].to_pylist()).ravel(), pa.float32())
    offsets = pa.array(np.arange(rows.num_rows + 1) * encoder.width, pa.int32())
    return rows.append_column("text_embedding", pa.ListArray.from_arrays(offsets, flat))
