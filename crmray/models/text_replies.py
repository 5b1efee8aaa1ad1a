"""The answer to the solved inquiry that is most like a new one: nearest neighbour over hashed words.

A text is its words and pairs of words, hashed (Weinberger et al. 2009), each weighted by how rare it is among the
solved inquiries, of length 1; likeness is their cosine. The solved inquiries are kept with the ids of those they are
about: whoever is forgotten is found in the bundle.

Shapes: M solved inquiries, W words of all of them, N texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_SOLVED = 2_000
"""solved inquiries kept, as many of each intent"""
MAX_ANSWER_CHARS = 2_000
"""of an answer"""
NUM_BUCKETS = 2**20


def solved(train: pa.Table) -> dict[str, Any]:
    """The newest solved inquiries of each intent, as JSON: intents, answers, interaction_ids and customer_ids (M), and
    buckets (W) of their words, those of inquiry i being ends[i]:ends[i + 1].

    train: rows with label, text, text_answer, customer_id and keys.
    """
    rows = train.filter(pc.is_valid(train["text_answer"]))
    order = pc.sort_indices(rows, [("as_of", "descending"), ("entity_id", "ascending")])
    rows = rows.select(["entity_id", "customer_id", "label", "text", "text_answer"]).take(order)
    intents = sorted(pc.unique(rows["label"]).to_pylist())
    most = max(1, MAX_SOLVED // max(1, len(intents)))
    parts = [rows.filter(pc.equal(rows["label"], intent)).slice(0, most) for intent in intents]
    kept = pa.concat_tables([rows.slice(0, 0), *parts])
    words = _hashed(kept["text"].to_pylist())
    return {
        "intents": kept["label"].to_pylist(),
        "answers": [answer[:MAX_ANSWER_CHARS] for answer in kept["text_answer"].to_pylist()],
        "interaction_ids": kept["entity_id"].to_pylist(),
        "customer_ids": kept["customer_id"].to_pylist(),
        "ends": words.indptr.tolist(),
        "buckets": words.indices.tolist(),
    }


def nearest(
    known: Mapping[str, Any], texts: Sequence[str], intents: np.ndarray, least: float
) -> tuple[list[str | None], np.ndarray]:
    """Of each text the answer to the most similar solved inquiry of its intent, and the cosine (NaN without one).

    intents (N,): None where it is not known. least: cosine below which there is no answer.
    """
    answers: list[str | None] = [None] * len(texts)
    similarity = np.full(len(texts), np.nan)
    asked = np.flatnonzero([one is not None for one in intents])
    if not len(asked) or not known["intents"]:
        return answers, similarity
    theirs = _matrix(known)
    idf = 1.0 + np.log((1.0 + theirs.shape[0]) / (1.0 + np.bincount(theirs.indices, minlength=NUM_BUCKETS)))
    theirs, ours = _weighted(theirs, idf), _weighted(_hashed([texts[i] for i in asked.tolist()]), idf)
    likeness = (ours @ theirs.T).toarray()
    likeness[intents[asked][:, None] != np.array(known["intents"], object)] = -1.0
    for i, best, row in zip(asked, likeness.argmax(axis=1), likeness, strict=True):
        if row[best] >= least:
            answers[i], similarity[i] = known["answers"][best], float(row[best])
    return answers, similarity


def _matrix(known: Mapping[str, Any]) -> Any:
    """(M, NUM_BUCKETS) CSR of ones."""
    from scipy import sparse

    buckets, ends = (np.asarray(known[name], np.int64) for name in ("buckets", "ends"))
    return sparse.csr_matrix((np.ones(len(buckets)), buckets, ends), shape=(len(ends) - 1, NUM_BUCKETS))


def _weighted(words: Any, idf: np.ndarray) -> Any:
    """Rows of length 1, each word weighted by its idf."""
    from sklearn.preprocessing import normalize

    words.data = idf[words.indices]
    return normalize(words, copy=False)


def _hashed(texts: Sequence[str]) -> Any:
    """(N, NUM_BUCKETS) CSR of ones: the words and pairs of words of each text."""
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer

    if not texts:  # scikit-learn wants one at least
        return sparse.csr_matrix((0, NUM_BUCKETS))
    made = HashingVectorizer(n_features=NUM_BUCKETS, alternate_sign=False, binary=True, norm=None, ngram_range=(1, 2))
    return made.transform(texts)
