"""The answer to the solved inquiry that is most like a new one: nearest neighbour over hashed words.

A text is its words and pairs of words, hashed (Weinberger et al. 2009), each weighted by how rare it is among the
solved inquiries, of length 1; likeness is their cosine. An answer is shown to others than it was written to, so all
long numbers are taken out, as greeting and end were before (crmray.data.letters). The solved inquiries are kept with
their ids, those of the answers and of the customers: whoever is forgotten is found in the bundle (crmray.forget).

Shapes: M solved inquiries, W words of all of them, N texts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_SOLVED = 2_000
"""solved inquiries kept, as many of each intent"""
MAX_ANSWER_CHARS = 2_000
"""of an answer"""
NUM_BUCKETS = 2**18
BLOCK_TEXTS = 1_000
"""compared with all solved inquiries at once"""
MOST_DIGITS = 4
"""of a word of an answer: more are an order, a customer or a date"""
NUMBER = "[NUMBER]"
_WORD = re.compile(r"[\w/-]+(?:(?<=\d)[ ](?=\d)[\w/-]+)*")
"""a number in groups is one word"""


def solved(train: pa.Table) -> dict[str, Any]:
    """The newest solved inquiries of each intent, as JSON: intents, answers, interaction_ids, answer_ids and
    customer_ids (M), and buckets (W) of their words, those of inquiry i being ends[i]:ends[i + 1].

    train: rows with label, text, text_answer, text_answer_id, customer_id and keys.
    """
    rows = train.filter(pc.is_valid(train["text_answer"]))
    answers = [_for_others(answer)[:MAX_ANSWER_CHARS] for answer in rows["text_answer"].to_pylist()]
    place = rows.schema.get_field_index("text_answer")
    rows = rows.set_column(place, "text_answer", pa.array(answers, pa.string()))
    rows = rows.take(pc.sort_indices(rows, [("as_of", "descending"), ("entity_id", "ascending")]))
    intents = sorted(pc.unique(rows["label"]).to_pylist())
    most = max(1, MAX_SOLVED // max(1, len(intents)))
    parts = [rows.filter(pc.equal(rows["label"], intent)).slice(0, most) for intent in intents]
    kept = pa.concat_tables([rows.slice(0, 0), *parts])
    words = _hashed(kept["text"].to_pylist())
    return {
        "intents": kept["label"].to_pylist(),
        "answers": kept["text_answer"].to_pylist(),
        "interaction_ids": kept["entity_id"].to_pylist(),
        "answer_ids": kept["text_answer_id"].to_pylist(),
        "customer_ids": kept["customer_id"].to_pylist(),
        "ends": words.indptr.tolist(),
        "buckets": words.indices.tolist(),
    }


def without(known: Mapping[str, Any], people: Collection[str]) -> dict[str, Any]:
    """The solved inquiries but those of these customers."""
    kept = [i for i, customer in enumerate(known["customer_ids"]) if customer not in people]
    words = [known["buckets"][known["ends"][i] : known["ends"][i + 1]] for i in kept]
    columns = {name: [values[i] for i in kept] for name, values in known.items() if name not in ("buckets", "ends")}
    ends = np.cumsum([0, *map(len, words)]).tolist()
    return {**columns, "ends": ends, "buckets": [bucket for own in words for bucket in own]}


def _for_others(answer: str) -> str:
    """An answer without the numbers of whom it was written to."""
    body = _WORD.sub(lambda word: NUMBER if sum(map(str.isdigit, word[0])) > MOST_DIGITS else word[0], answer)
    return body[:1].upper() + body[1:]


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
    theirs, their_intents = _weighted(theirs, idf).T, np.array(known["intents"], object)
    for block in (asked[start : start + BLOCK_TEXTS] for start in range(0, len(asked), BLOCK_TEXTS)):
        likeness = (_weighted(_hashed([texts[i] for i in block.tolist()]), idf) @ theirs).toarray()
        likeness[intents[block][:, None] != their_intents] = -1.0
        for i, best, row in zip(block, likeness.argmax(axis=1), likeness, strict=True):
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
