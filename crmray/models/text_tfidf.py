"""Linear models over TF-IDF of words and of characters: logistic regression, and a linear SVC joined with embeddings.

TF-IDF of word 1- and 2-grams beside character 2- to 5-grams within word boundaries, each with logarithmic counts and
rows of length 1. Where the examples carry an encoder's sentence embeddings (`text_embedding`) the SVC reads both side
by side. Saved as JSON and .npy.

Shapes: N rows, F features (word, then character n-grams, then the embedding), K classes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from crmray.errors import DataError, NotEnoughDataError, SchemaError
from crmray.models import text_penalty
from crmray.models.labels import by_class, within_budget
from crmray.models.tabular import check_choice, check_positive, file_of, softmax, to_json
from crmray.models.text_calibration import calibrated
from crmray.models.text_classes import EMBEDDING, TEXT, learnable, needs_text, texts_of

ANALYZERS: dict[str, dict[str, Any]] = {
    "word": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w\w+\b"},
    "char": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}
BYTES_PER_CHAR = 4 * 16
"""of a text's characters: about four n-grams begin at each, with an index and a weight, held twice"""
MARGIN_SCALE = 2.0
"""makes an SVC's margins the logits of rough probabilities, where C is given"""
LOGISTIC_PATH, SVC_PATH = (0.05, 0.2, 1.0, 4.0, 16.0), (0.005, 0.02, 0.06, 0.15, 0.5)
"""values of C that are tried"""


@dataclass(frozen=True, kw_only=True)
class _Tfidf:
    """What both linear models are set by."""

    KIND: ClassVar[str] = "memory"
    NAME: ClassVar[str]

    C: float = 0.0
    """Inverse strength of the L2 penalty; 0: chosen by cross-validation on the training rows."""
    class_weight: Literal["none", "balanced"] = "balanced"
    """`balanced` gives all classes the same total weight: rare ones count in the macro-F1 as much as frequent ones."""
    min_rows: int = 2
    """Texts that an n-gram has to stand in."""
    max_terms: int = 300_000
    """Most frequent n-grams kept of words, and as many of characters."""
    memory_gib: float = 2.0
    """Training rows are sampled beyond this."""

    def __post_init__(self):
        if not self.C >= 0:
            raise ValueError(f"got C={self.C!r}, expected a number above 0, or 0 to have it chosen")
        check_positive(min_rows=self.min_rows, max_terms=self.max_terms, memory_gib=self.memory_gib)
        check_choice("class_weight", self.class_weight, ("none", "balanced"))

    applies = staticmethod(needs_text)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> LinearText:
        """The model that `save` wrote."""
        about = json.loads(file_of(files, "linear.json"))

        def array(name: str) -> np.ndarray:
            return np.load(io.BytesIO(file_of(files, f"{name}.npy")), allow_pickle=False)

        idf = {name: array(f"idf_{name}") for name in about["vocabulary"]}
        return LinearText(
            terms=Terms(vocabulary=about.pop("vocabulary"), idf=idf), weights_KF=array("weights"),
            bias_K=array("bias"), **about,
        )  # fmt: skip

    def _rows(self, train: pa.Table, seed: int) -> tuple[pa.Table, list[str], np.ndarray]:
        """Of the rows within the budget those that can be learned, the classes, and the class of each row."""
        mean_chars = sum(map(len, texts_of(train))) / max(1, train.num_rows)
        size = BYTES_PER_CHAR * (1 + mean_chars)
        rows = within_budget(train, bytes_per_row=size, memory_gib=self.memory_gib, candidate=self.NAME, seed=seed)
        return learnable(rows)

    def _fitted(
        self, make: Callable[[], Any], terms: Terms, classes: list[str], features: Any, code: np.ndarray, *,
        scale: float, seed: int, embedding_weight: float = 0.0,
    ) -> LinearText:  # fmt: skip
        """The fitted solver's weights; of two classes scikit-learn keeps the second one's alone."""
        solver = make().fit(features, code)
        weights, bias = np.asarray(solver.coef_, np.float32), np.asarray(solver.intercept_, np.float32)
        if len(classes) == 2:
            weights, bias = (np.concatenate([-x / 2, x / 2]) for x in (weights, bias))
        calibration = text_penalty.calibration_of(make, features, code, scale=scale, seed=seed)
        return LinearText(
            terms=terms, classes=classes, weights_KF=weights, bias_K=bias, scale=scale, calibration=calibration,
            embedding_weight=embedding_weight,
        )  # fmt: skip

    @property
    def _weight(self) -> str | None:
        """class_weight as scikit-learn has it."""
        return None if self.class_weight == "none" else "balanced"


@dataclass(frozen=True, kw_only=True)
class TfidfLogistic(_Tfidf):
    """Multinomial logistic regression over TF-IDF."""

    NAME: ClassVar[str] = "tfidf_logistic"
    GRID: ClassVar[dict[str, tuple]] = {"min_rows": (2, 5), "class_weight": ("none", "balanced")}

    max_iterations: int = 300
    """Of the solver (L-BFGS)."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(max_iterations=self.max_iterations)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> LinearText:
        """Fit on training rows; validation and rounds change nothing."""
        from sklearn.linear_model import LogisticRegression

        rows, classes, code = self._rows(train, seed)
        terms, features = Terms.fit(texts_of(rows), min_rows=self.min_rows, max_terms=self.max_terms)
        make = partial(_solver, LogisticRegression, class_weight=self._weight, max_iter=self.max_iterations)
        strength = self.C or text_penalty.best(make, features, code, LOGISTIC_PATH, scale=1.0, seed=seed)[0]
        return self._fitted(partial(make, strength), terms, classes, features, code, scale=1.0, seed=seed)


@dataclass(frozen=True, kw_only=True)
class TfidfSVC(_Tfidf):
    """Linear SVC over TF-IDF, joined with the sentence embeddings of an encoder where the examples have them."""

    NAME: ClassVar[str] = "tfidf_svc"
    GRID: ClassVar[dict[str, tuple]] = {
        "embedding_weight": (1.0, 1.5, 2.0), "class_weight": ("none", "balanced"),
    }  # fmt: skip

    embedding_weight: float = 1.5
    """Length of an embedding beside TF-IDF rows of length sqrt(2); nothing without embeddings."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(embedding_weight=self.embedding_weight)

    def fit(self, train: pa.Table, validation: pa.Table | None, *, seed: int, rounds: int | None = None) -> LinearText:
        """Fit on training rows; validation and rounds change nothing."""
        from scipy import sparse
        from sklearn.svm import LinearSVC

        rows, classes, code = self._rows(train, seed)
        terms, features = Terms.fit(texts_of(rows), min_rows=self.min_rows, max_terms=self.max_terms)
        weight = self.embedding_weight if EMBEDDING in rows.column_names else 0.0
        if weight:
            features = sparse.hstack([features, weight * embeddings_of(rows)], format="csr", dtype=np.float32)
        make = partial(_solver, LinearSVC, class_weight=self._weight, random_state=seed)
        strength, scale = self.C, MARGIN_SCALE
        if not strength:
            strength, scale = text_penalty.best(make, features, code, SVC_PATH, scale=MARGIN_SCALE, seed=seed)
        solver = partial(make, strength)
        return self._fitted(solver, terms, classes, features, code, scale=scale, seed=seed, embedding_weight=weight)


def _solver(kind: type, strength: float, **settings: Any) -> Any:
    return kind(C=strength, **settings)


def embeddings_of(examples: pa.Table) -> np.ndarray:
    """float32 (N, D): the sentence embeddings, of length 1. SchemaError without them, DataError for other lists."""
    if EMBEDDING not in examples.column_names:
        raise SchemaError(f"column {EMBEDDING!r} is missing; expected the encoder's embeddings, as in training")
    column = examples[EMBEDDING].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if not len(column) or len(flat) % len(column) or column.null_count:
        raise DataError(
            f"column {EMBEDDING!r}: got {len(flat)} numbers in {len(column)} rows, expected as many in each"
        )
    return flat.reshape(len(column), -1)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The n-grams of the training texts and their inverse document frequencies."""

    vocabulary: dict[str, list[str]]
    """analyzer -> its n-grams in the order of the columns"""
    idf: dict[str, np.ndarray]
    """analyzer -> float32, one for each n-gram"""
    _vectorizers: dict[str, Any] = field(default_factory=dict, repr=False)

    @staticmethod
    def fit(texts: list[str], *, min_rows: int, max_terms: int) -> tuple[Terms, Any]:
        """The n-grams of training texts, and their features (N, F) as CSR. NotEnoughDataError when none is left."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        names, idf = {}, {}
        for name, how in ANALYZERS.items():
            made = TfidfVectorizer(**how, sublinear_tf=True, min_df=min_rows, max_features=max_terms, dtype=np.float32)
            try:
                made.fit(texts)
            except ValueError:  # scikit-learn's word for an empty vocabulary
                raise NotEnoughDataError(
                    f"column {TEXT!r}: got {len(texts)} texts without a {name} n-gram that {min_rows} of them share,"
                    " expected longer or more texts"
                ) from None
            names[name], idf[name] = made.get_feature_names_out().tolist(), made.idf_.astype(np.float32)
        terms = Terms(vocabulary=names, idf=idf)
        return terms, terms.features(texts)

    def features(self, texts: list[str]) -> Any:
        """(N, F) float32 CSR, the part of each analyzer with rows of length 1 (0 for a text without known n-grams)."""
        from scipy import sparse
        from sklearn.preprocessing import normalize

        parts = []
        for name, idf in self.idf.items():
            counts = self._vectorizer(name).transform(texts)
            counts.data = (1.0 + np.log(counts.data)) * idf[counts.indices]
            parts.append(normalize(counts, copy=False))
        return sparse.hstack(parts, format="csr", dtype=np.float32)

    def _vectorizer(self, name: str) -> Any:
        from sklearn.feature_extraction.text import CountVectorizer

        if name not in self._vectorizers:  # the index of the vocabulary is built once
            places = {term: column for column, term in enumerate(self.vocabulary[name])}
            self._vectorizers[name] = CountVectorizer(**ANALYZERS[name], vocabulary=places, dtype=np.float32)
        return self._vectorizers[name]


@dataclass(frozen=True, kw_only=True)
class LinearText:
    """A fitted linear model over TF-IDF and, where it was trained with them, sentence embeddings."""

    terms: Terms
    """its n-grams"""
    classes: list[str]
    """sorted"""
    weights_KF: np.ndarray
    """float32 (K, F)"""
    bias_K: np.ndarray
    """float32 (K,)"""
    scale: float
    """of the margins as logits"""
    calibration: dict[str, Any]
    """what makes these logits probabilities: see text_calibration"""
    embedding_weight: float
    """of the embeddings; 0: it reads none"""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """`p:<class>` float64 (N,) each."""
        num_terms = sum(map(len, self.terms.idf.values()))
        margins = self.terms.features(texts_of(examples)) @ self.weights_KF[:, :num_terms].T
        if self.embedding_weight and examples.num_rows:
            margins = margins + self.embedding_weight * embeddings_of(examples) @ self.weights_KF[:, num_terms:].T
        probability = softmax(self.scale * (margins + self.bias_K).astype(np.float64))
        return by_class(self.classes, calibrated(probability, self.calibration))

    def save(self) -> dict[str, bytes]:
        """Files of the model."""
        names = ("classes", "scale", "calibration", "embedding_weight")
        about = {name: getattr(self, name) for name in names}
        files = {"linear.json": to_json({**about, "vocabulary": self.terms.vocabulary})}
        arrays = {"weights": self.weights_KF, "bias": self.bias_K}
        arrays |= {f"idf_{name}": values for name, values in self.terms.idf.items()}
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, values, allow_pickle=False)
            files[f"{name}.npy"] = buffer.getvalue()
        return files
