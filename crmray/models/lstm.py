"""LSTM over a customer's events, with a tower for attributes, for a binary label.

Events come from the list columns `event_kind`, `event_days_before` (> 0) and `event_value`, oldest first; attributes
from the feature columns through `crmray.models.preprocess`. Either may be missing: an org with events only and an org
with one labelled row per customer both train.

Shape suffixes: B rows, T steps of time (events, right-padded), C numbers per event, D width of the kind embedding,
H hidden units, F numbers per row, A categorical attributes per row, N rows of a table, E events of a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from crmray.errors import NotEnoughDataError, SchemaError
from crmray.models.labels import LABEL, labels_of
from crmray.models.preprocess import Preparation, Tabular, feature_columns
from crmray.models.tabular import check_choice, check_positive, file_of, to_json
from crmray.schema import KEYS

EVENT_COLUMNS = ("event_kind", "event_days_before", "event_value")
NUM_EVENT_NUMBERS = 3  # log gap, log days before, signed log value
PADDING, FIRST_KIND = 0, 2  # kinds: 0 padding, 1 unseen in training, then the vocabulary
PREDICT_ROWS = 1024
FEW_ROWS = 8_000
FURTHEST = 10.0  # a value far beyond those of training must not decide alone


@dataclass(frozen=True, kw_only=True)
class LSTM:
    """Hyper-parameters; `crmray.train` fits it through the DeepSpeed engine."""

    NAME: ClassVar[str] = "lstm"
    KIND: ClassVar[str] = "torch"
    NEURAL: ClassVar[bool] = True
    GRID: ClassVar[dict[str, tuple]] = {"scale": ("standard", "quantile"), "lr": (1e-3, 3e-3), "dropout": (0.1, 0.3)}

    hidden: int = 32
    """Hidden units of the LSTM, and width of the attribute tower."""
    num_layers: int = 1
    """Layers of the LSTM."""
    max_events: int = 64
    """Newest events that are read; at most what the examples hold."""
    kind_width: int = 8
    """Width of the embedding of an event's kind."""
    dropout: float = 0.2
    """Share of units dropped in training, 0..1."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay."""
    lr: float = 1e-3
    """Largest learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Course of the learning rate over max_epochs."""
    warmup_share: float = 0.05
    """Share of all steps in which the learning rate rises from 0."""
    batch_size: int = 256
    """Rows per optimizer step, over all workers."""
    max_epochs: int = 5
    """Epochs at most."""
    patience: int = 3
    """Epochs without improvement on validation before training ends."""
    imbalance: Literal["none", "weights"] = "none"
    """Weights give both classes the same total; the probabilities are corrected for it."""
    missing: Literal["mean", "median", "mode"] = "median"
    """What a missing number becomes; see `Preparation`."""
    outliers: Literal["none", "clip"] = "none"
    """Bounds on numbers; see `Preparation`."""
    iqr_k: float = 3.0
    """Interquartile ranges allowed beyond the quartiles."""
    scale: Literal["minmax", "standard", "quantile"] = "standard"
    """Scaling of numbers; see `Preparation`. Scaled numbers are kept within FURTHEST of 0."""
    min_frequency: int = 10
    """Rows that a category needs for a code of its own."""

    def __post_init__(self) -> None:
        check_positive(
            hidden=self.hidden, num_layers=self.num_layers, max_events=self.max_events, kind_width=self.kind_width,
            lr=self.lr, batch_size=self.batch_size, max_epochs=self.max_epochs, patience=self.patience,
        )  # fmt: skip
        if not 0 <= self.dropout < 1 or not 0 <= self.warmup_share < 1 or self.weight_decay < 0:
            raise ValueError(
                f"got dropout={self.dropout}, warmup_share={self.warmup_share}, weight_decay={self.weight_decay}, "
                "expected shares within [0, 1) and a decay of 0 or more"
            )
        check_choice("imbalance", self.imbalance, ("none", "weights"))
        check_choice("schedule", self.schedule, ("constant", "cosine"))
        self._preparation()

    @classmethod
    def for_rows(cls, num_rows: int) -> dict[str, Any]:
        """Defaults that depend on the number of training rows: few rows need smaller batches and more epochs."""
        few = {"hidden": 64, "lr": 3e-3, "batch_size": 64, "max_epochs": 60, "patience": 10}
        return few if num_rows < FEW_ROWS else {}

    @classmethod
    def applies(cls, columns: Collection[str]) -> str | None:
        """Why it cannot run on examples with these columns, or None."""
        rest = [c for c in columns if c not in KEYS and c != LABEL and not c.startswith("label_")]
        return None if rest else "the examples have neither events nor feature columns"

    def _preparation(self) -> Preparation:
        return Preparation(
            missing=self.missing,
            outliers=self.outliers,
            iqr_k=self.iqr_k,
            scale=self.scale,
            min_frequency=self.min_frequency,
        )

    # -- what the training loop asks for ---------------------------------------------------------------------------

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        """Preprocessing learned on training rows, as JSON. NotEnoughDataError when there is nothing to learn from."""
        labels = labels_of(train)
        tabular = Tabular.fit(train, self._preparation()) if any(feature_columns(train.schema)) else None
        kinds: list[str | int] = []
        scales: list[list[float]] = []
        if all(name in train.column_names for name in EVENT_COLUMNS):
            kind_E = _flat(train["event_kind"])
            kinds = sorted(pc.unique(kind_E.drop_null()).to_pylist())
            scales = _scales(_codes(kind_E, kinds), _signed_log(_numbers(_flat(train["event_value"]))), len(kinds))
        if not kinds and (tabular is None or not (tabular.numeric or tabular.categorical)):
            raise NotEnoughDataError(
                f"lstm: got {train.num_rows} rows without any event or any feature that varies, expected one of them"
            )
        return {
            "tabular": None if tabular is None else tabular.state(),
            "kinds": kinds,
            "value_scales": scales,
            "positive_weight": float((labels == 0).sum() / labels.sum()) if self.imbalance == "weights" else 1.0,
        }

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        """Arrays of the rows: offsets (N + 1,), kinds (E,), events (E, C), numbers (N, F), codes (N, A), label (N,).

        Row i owns the events offsets[i]:offsets[i + 1], oldest first, at most max_events of them.
        """
        arrays = _encode_events(examples, state, self.max_events)
        if state["tabular"] is not None:
            tabular = Tabular.from_state(state["tabular"])
            arrays["numbers"] = np.clip(tabular.numbers(examples), -FURTHEST, FURTHEST).astype(np.float32)
            arrays["codes"] = tabular.codes(examples)
        else:
            arrays["numbers"] = np.zeros((examples.num_rows, 0), np.float32)
            arrays["codes"] = np.zeros((examples.num_rows, 0), np.int64)
        if LABEL in examples.column_names and examples[LABEL].null_count == 0:
            arrays["label"] = pc.cast(examples[LABEL], pa.float32()).to_numpy()
        return arrays

    def lengths(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """(N,) events per row; None without events."""
        lengths = np.diff(arrays["offsets"])
        return lengths if lengths.any() else None

    def module(self, state: Mapping[str, Any]) -> ChurnLSTM:
        """A fresh module of the right sizes."""
        tabular = None if state["tabular"] is None else Tabular.from_state(state["tabular"])
        return ChurnLSTM(
            num_kinds=len(state["kinds"]),
            num_numbers=0 if tabular is None else len(tabular.number_names),
            num_codes=[] if tabular is None else tabular.num_codes,
            hidden=self.hidden,
            num_layers=self.num_layers,
            kind_width=self.kind_width,
            dropout=self.dropout,
            log_positive_weight=math.log(state["positive_weight"]),
        )

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows as tensors; events right-padded to the longest row of the batch."""
        first_B = arrays["offsets"][rows]
        length_B = arrays["offsets"][rows + 1] - first_B
        steps_T = np.arange(max(1, int(length_B.max(initial=0))))
        real_BT = steps_T < length_B[:, None]
        kinds_BT = np.full(real_BT.shape, PADDING)
        events_BTC = np.zeros((*real_BT.shape, NUM_EVENT_NUMBERS), np.float32)
        place = (first_B[:, None] + steps_T)[real_BT]
        kinds_BT[real_BT], events_BTC[real_BT] = arrays["kinds"][place], arrays["events"][place]
        out = {
            "kinds_BT": torch.from_numpy(kinds_BT),
            "events_BTC": torch.from_numpy(events_BTC),
            "length_B": torch.from_numpy(length_B),
            "numbers_BF": torch.from_numpy(arrays["numbers"][rows]),
            "codes_BA": torch.from_numpy(arrays["codes"][rows]),
        }
        if "label" in arrays:
            out["label_B"] = torch.from_numpy(arrays["label"][rows])
        return out

    def loss(self, module: ChurnLSTM, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) log loss, positives times the class weight."""
        positive_weight = module.log_positive_weight.exp()
        return nn.functional.binary_cross_entropy_with_logits(
            module(batch).float(), batch["label_B"], reduction="none", pos_weight=positive_weight
        )

    def outputs(self, module: ChurnLSTM, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{"score": (B,)}, corrected for the class weight."""
        return {"score": torch.sigmoid(module(batch).float() - module.log_positive_weight)}

    def fitted(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int) -> LSTMModel:
        """The model with trained weights."""
        module = self.module(state)
        module.load_state_dict(dict(weights))
        return LSTMModel(candidate=self, state=dict(state), module=module.eval(), rounds=rounds)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> LSTMModel:
        """The model that `save` wrote."""
        about = json.loads(file_of(files, "lstm.json"))
        weights = load_tensors(file_of(files, "weights.safetensors"))
        return LSTM(**about["settings"]).fitted(about["state"], weights, about["rounds"])


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """All elements of a list column, in order; dictionaries decoded."""
    lists = column.combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    values = lists.flatten()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _numbers(values: pa.Array) -> np.ndarray:
    """float64, 0 where missing or not finite."""
    numbers = pc.cast(values, pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(numbers), numbers, 0.0)


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


def _codes(kind_E: pa.Array, vocabulary: list[str | int]) -> np.ndarray:
    """(E,) int64: place in the vocabulary after FIRST_KIND, FIRST_KIND - 1 for kinds that training did not have."""
    known = pc.index_in(kind_E, value_set=pa.array(vocabulary, kind_E.type)).fill_null(-1)
    return np.maximum(known.to_numpy(zero_copy_only=False).astype(np.int64) + FIRST_KIND, FIRST_KIND - 1)


def _scales(codes: np.ndarray, values: np.ndarray, num_kinds: int) -> list[list[float]]:
    """[mean, standard deviation] of the values by code: an order's amount and a rating share no scale."""
    scales = [[0.0, 1.0] for _ in range(num_kinds + FIRST_KIND)]
    for code in range(FIRST_KIND, num_kinds + FIRST_KIND):
        own = values[codes == code]
        scales[code] = [float(own.mean()), float(own.std()) or 1.0]
    return scales


def _encode_events(examples: pa.Table, state: Mapping[str, Any], max_events: int) -> dict[str, np.ndarray]:
    """offsets (N + 1,) int64, kinds (E,) int64, events (E, C) float32; no events where training had none."""
    num_rows = examples.num_rows
    if not state["kinds"]:
        empty = np.zeros((0, NUM_EVENT_NUMBERS), np.float32)
        return {"offsets": np.zeros(num_rows + 1, np.int64), "kinds": np.zeros(0, np.int64), "events": empty}
    missing = [name for name in EVENT_COLUMNS if name not in examples.column_names]
    if missing:
        raise SchemaError(f"column {missing[0]!r} is missing; expected it as a sequence, as in training")
    counts = pc.list_value_length(examples["event_kind"]).fill_null(0).to_numpy().astype(np.int64)
    for name in EVENT_COLUMNS[1:]:
        if not np.array_equal(pc.list_value_length(examples[name]).fill_null(0).to_numpy(), counts):
            raise SchemaError(f"column {name!r}: its lists differ in length from those of 'event_kind'")
    kinds = _codes(_flat(examples["event_kind"]), state["kinds"])
    days = _numbers(_flat(examples["event_days_before"]))
    mean_std = np.array(state["value_scales"])[kinds]
    value = (_signed_log(_numbers(_flat(examples["event_value"]))) - mean_std[:, 0]) / mean_std[:, 1]
    ends = np.cumsum(counts)
    gap = np.zeros_like(days)
    gap[1:] = np.maximum(days[:-1] - days[1:], 0.0)
    gap[(ends - counts)[counts > 0]] = 0.0  # a row's first event follows nothing
    from_end = np.repeat(ends, counts) - np.arange(len(days))
    kept = from_end <= max_events
    # Days reach into the thousands: a third of the log brings all three numbers near 1.
    events = np.stack([np.log1p(gap) / 3, np.log1p(np.maximum(days, 0.0)) / 3, value], axis=1)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, max_events))])
    return {"offsets": offsets, "kinds": kinds[kept], "events": events[kept].astype(np.float32)}


class ChurnLSTM(nn.Module):
    """Events -> LSTM -> last state and mean; attributes -> tower; both -> one logit.

    The LSTM runs forward over right-padded rows and is read at each row's last event, so padding cannot be seen.
    """

    def __init__(
        self, *, num_kinds: int, num_numbers: int, num_codes: list[int], hidden: int, num_layers: int, kind_width: int,
        dropout: float, log_positive_weight: float,
    ):  # fmt: skip
        super().__init__()
        self.has_events, self.has_attributes = num_kinds > 0, num_numbers + len(num_codes) > 0
        width = 0
        if self.has_events:
            self.kind = nn.Embedding(num_kinds + FIRST_KIND, kind_width, padding_idx=PADDING)
            self.lstm = nn.LSTM(
                kind_width + NUM_EVENT_NUMBERS,
                hidden,
                num_layers,
                batch_first=True,
                dropout=dropout if num_layers > 1 else 0.0,
            )
            width += 2 * hidden
        if self.has_attributes:
            widths = [min(16, 1 + round(size**0.5)) for size in num_codes]
            self.codes = nn.ModuleList(nn.Embedding(n, w) for n, w in zip(num_codes, widths, strict=True))
            tower = 4 * hidden
            self.tower = nn.Sequential(
                nn.Linear(num_numbers + sum(widths), tower), nn.SiLU(), nn.Dropout(dropout),
                nn.Linear(tower, tower), nn.SiLU(),
            )  # fmt: skip
            width += tower
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        self.log_positive_weight: torch.Tensor
        self.register_buffer("log_positive_weight", torch.tensor(log_positive_weight))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) logits."""
        parts = []
        if self.has_events:
            parts += self._events(batch["kinds_BT"], batch["events_BTC"], batch["length_B"])
        if self.has_attributes:
            codes_BA = batch["codes_BA"]
            embedded = [table(codes_BA[:, a]) for a, table in enumerate(self.codes)]
            parts.append(self.tower(torch.cat([batch["numbers_BF"], *embedded], dim=1)))
        return self.head(torch.cat(parts, dim=1)).squeeze(1)

    def _events(self, kinds_BT: torch.Tensor, events_BTC: torch.Tensor, length_B: torch.Tensor) -> list[torch.Tensor]:
        """The last state and the mean state, (B, H) each; zero for rows without events."""
        states_BTH, _ = self.lstm(torch.cat([self.kind(kinds_BT), events_BTC], dim=2))
        real_BT1 = (kinds_BT != PADDING).unsqueeze(2)
        last_B = (length_B - 1).clamp(min=0)
        last_BH = states_BTH[torch.arange(len(last_B), device=last_B.device), last_B]
        mean_BH = (states_BTH * real_BT1).sum(1) / length_B.clamp(min=1).unsqueeze(1)
        some_B1 = (length_B > 0).unsqueeze(1)
        return [last_BH * some_B1, mean_BH]


@dataclass(frozen=True, kw_only=True)
class LSTMModel:
    """A fitted LSTM, on the CPU."""

    candidate: LSTM
    """Its hyper-parameters."""
    state: dict[str, Any]
    """Its preprocessing."""
    module: ChurnLSTM
    """Its weights."""
    rounds: int | None
    """Epochs that it was trained for."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, the probability of label 1."""
        known = [name for name in examples.column_names if name != LABEL]
        arrays = self.candidate.encode(self.state, examples.select(known))
        order = np.argsort(np.diff(arrays["offsets"]), kind="stable")  # rows of one length need no padding
        score = np.empty(examples.num_rows)
        with torch.inference_mode():
            for start in range(0, len(order), PREDICT_ROWS):
                rows = order[start : start + PREDICT_ROWS]
                score[rows] = self.candidate.outputs(self.module, self.candidate.batch(arrays, rows))["score"].numpy()
        return {"score": score}

    def check(self, examples: pa.Table) -> None:
        """SchemaError or DataError for rows that no answer should be given for."""
        if self.state["tabular"] is not None:
            Tabular.from_state(self.state["tabular"]).check(examples)
        if self.state["kinds"]:
            for name in EVENT_COLUMNS:
                if name not in examples.column_names:
                    raise SchemaError(f"column {name!r} is missing; expected it as a sequence, as in training")

    def save(self) -> dict[str, bytes]:
        """Files of the model: weights as safetensors, the rest as JSON."""
        about = {"settings": asdict(self.candidate), "state": self.state, "rounds": self.rounds}
        weights = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        return {"weights.safetensors": save_tensors(weights), "lstm.json": to_json(about)}
