"""Aspects: what the texts of dissatisfied customers speak of, more than others do.

Candidates are the words and short runs of words that begin and end with no function word: one that stands in a large
share of all texts, whatever the language, or an English stop word. An aspect is ranked by the z-score of its log-odds
between negative and other texts under an informative Dirichlet prior (Monroe, Colaresi & Quinn 2008). Only what several
customers wrote word for word is shown, so no line tells of one person.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

LEAST_CUSTOMERS = 5
"""customers who wrote the same words before they are shown"""
MAX_ASPECTS, MAX_PHRASES = 20, 3
MAX_TEXTS = 20_000
"""texts that are looked at, evenly taken"""
MAX_WORDS, MAX_PHRASE_WORDS = 3, 7
COMMON_SHARE = 0.2
"""of all texts; a word in more of them is no aspect's edge"""
PRIOR_TEXTS = 20
"""weight of the prior: as if so many texts of each side had been seen, in which a term is as frequent as in all"""
LEAST_Z = 1.64
"""z-score of the log-odds: one-sided 5 %"""
SAME_SHARE = 0.7
"""of an aspect's texts that hold a longer one: then the longer one stands for both"""
_WORD = re.compile(r"\[[A-Z]+\]|[^\W\d_](?:[\w'’-]*\w)?")
"""or what stands where a name or a number was taken out"""


def of_texts(
    texts: Sequence[str], customers: Sequence[str], negative: np.ndarray, score: np.ndarray
) -> list[dict[str, Any]]:
    """The aspects that set negative texts apart, the strongest first.

    texts, customers, negative (bool), score (-1..1): (N,). Each aspect: aspect, texts and customers that mention it,
    mean_score of these texts, log_odds_z, phrases (longer runs of words around it that several customers wrote).
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    step = max(1, len(texts) // MAX_TEXTS)
    rows = range(0, len(texts), step)
    words = {row: [found.lower() for found in _WORD.findall(texts[row])] for row in rows}
    places = _places(words, MAX_WORDS)
    places = _shared(places, customers)
    common = {term for term, found in places.items() if len(found) > COMMON_SHARE * len(words)} | ENGLISH_STOP_WORDS
    ranked = []
    for term, found in places.items():
        own = term.split(" ")
        if any(edge in common or len(edge) < 3 or "'" in edge or "[" in edge for edge in (own[0], own[-1])):
            continue
        z = _z(found, negative, words)
        if z >= LEAST_Z:
            ranked.append((z, term))
    ranked.sort(key=lambda pair: (-pair[0], pair[1]))
    phrases = _shared(_places({row: words[row] for row in words if negative[row]}, MAX_PHRASE_WORDS), customers)
    chosen: list[str] = []
    for _, term in ranked:
        if len(chosen) < MAX_ASPECTS and not any(_told(term, other, places) for other in chosen):
            chosen.append(term)
    strength = {term: z for z, term in ranked}
    return [
        {
            "aspect": term,
            "texts": len(places[term]),
            "customers": len({customers[row] for row in places[term]}),
            "mean_score": float(np.mean(score[list(places[term])])),
            "log_odds_z": strength[term],
            "phrases": _around(term, phrases),
        }
        for term in chosen
    ]


def _places(words: dict[int, list[str]], most: int) -> dict[str, set[int]]:
    """Run of up to `most` words -> rows of the texts that hold it."""
    places: dict[str, set[int]] = defaultdict(set)
    for row, own in words.items():
        for term in _runs(own, most):
            places[term].add(row)
    return places


def _runs(words: list[str], most: int) -> Iterator[str]:
    for start in range(len(words)):
        for end in range(start + 1, min(start + most, len(words)) + 1):
            yield " ".join(words[start:end])


def _shared(places: dict[str, set[int]], customers: Sequence[str]) -> dict[str, set[int]]:
    """What enough customers wrote."""
    many = {term: rows for term, rows in places.items() if len(rows) >= LEAST_CUSTOMERS}
    return {term: rows for term, rows in many.items() if len({customers[row] for row in rows}) >= LEAST_CUSTOMERS}


def _z(rows: set[int], negative: np.ndarray, words: dict[int, list[str]]) -> float:
    """z-score of the log-odds of a term between negative and other texts."""
    total = np.array([sum(bool(negative[row]) for row in words), 0.0])
    total[1] = len(words) - total[0]
    count = np.array([sum(bool(negative[row]) for row in rows), 0.0])
    count[1] = len(rows) - count[0]
    prior = PRIOR_TEXTS * len(rows) / len(words)
    odds = (count + prior) / np.maximum(total + PRIOR_TEXTS - count - prior, 1e-9)
    return float((np.log(odds[0]) - np.log(odds[1])) / np.sqrt((1 / (count + prior)).sum()))


def _told(term: str, other: str, places: dict[str, set[int]]) -> bool:
    """Whether one of the two runs holds the other, in mostly the same texts."""
    short, long = sorted((term, other), key=len)
    inside = f" {short} " in f" {long} "
    both = len(places[term] & places[other])
    return inside and both >= SAME_SHARE * min(len(places[term]), len(places[other]))


def _around(term: str, phrases: dict[str, set[int]]) -> list[str]:
    """The most frequent longer runs that hold the term, none inside another."""
    longer = [run for run in phrases if run.count(" ") >= term.count(" ") + 2 and f" {term} " in f" {run} "]
    longer.sort(key=lambda run: (-len(phrases[run]) * (1 + run.count(" ")), run))
    chosen: list[str] = []
    for run in longer:
        if len(chosen) < MAX_PHRASES and not any(run in other or other in run for other in chosen):
            chosen.append(run)
    return chosen
