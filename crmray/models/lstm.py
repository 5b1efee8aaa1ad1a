"""LSTM over a customer's events, with a tower for attributes, for a binary label.

Events come from the list columns `event_kind`, `event_days_before` (> 0) and `event_value`, oldest first; attributes
from the feature columns through `crmray.models.preprocess`. Either may be missing: an org with events only and an org
with one labelled row per customer both train.

Shape suffixes: B rows, T steps of time (events, right-padded), C numbers per event, D width of the kind embedding,
H hidden units, F numbers per row, A categorical attributes per row, N rows of a table, E events of a table.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from crmray.errors import NotEnoughDataError
from crmray.models import events
from crmray.models.columns import feature_columns
from crmray.models.events import FIRST_KIND, NUM_EVENT_NUMBERS, PADDING
from crmray.models.labels import LABEL, labels_of
from crmray.models.network import Codes, FittedNetwork, Network, feature_arrays, feature_batch, runs_of
from crmray.models.preprocess import Tabular
from crmray.models.tabular import check_positive, needs_features

PREDICT_ROWS = 1024
FEW_ROWS = 8_000


@dataclass(frozen=True, kw_only=True)
class LSTM(Network):
    """Hyper-parameters; `crmray.train` fits it through the DeepSpeed engine."""

    NAME: ClassVar[str] = "lstm"
    KIND: ClassVar[str] = "torch"
    ARCHITECTURE: ClassVar[str] = "recurrent"
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
    max_epochs: int = 5
    """Epochs at most."""
    patience: int = 3
    """Epochs without improvement on validation before training ends."""

    def __post_init__(self) -> None:
        check_positive(
            hidden=self.hidden, num_layers=self.num_layers, max_events=self.max_events, kind_width=self.kind_width
        )
        super().__post_init__()

    @classmethod
    def for_rows(cls, num_rows: int) -> dict[str, Any]:
        """Defaults that depend on the number of training rows: few rows need smaller batches and more epochs."""
        few = {"hidden": 64, "lr": 3e-3, "batch_size": 64, "max_epochs": 60, "patience": 10}
        return few if num_rows < FEW_ROWS else {}

    @classmethod
    def applies(cls, columns: Collection[str]) -> str | None:
        """Why it cannot run on examples with these columns, or None."""
        return needs_features(columns) and "the examples have neither events nor feature columns"

    # -- what the training loop asks for ---------------------------------------------------------------------------

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        """Preprocessing learned on training rows, as JSON. NotEnoughDataError when there is nothing to learn from."""
        labels = labels_of(train)
        tabular = None
        if any(feature_columns(train.schema)):
            tabular = self.fit_tabular(train, "yes_no", seed=0)
        vocabulary = events.vocabulary(train)
        if not vocabulary["kinds"] and (tabular is None or not (tabular.numeric or tabular.categorical)):
            raise NotEnoughDataError(
                f"lstm: got {train.num_rows} rows without any event or any feature that varies, expected one of them"
            )
        return {
            "tabular": None if tabular is None else tabular.state(),
            **vocabulary,
            "positive_weight": self.positive_weight(labels),
        }

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        """Arrays of the rows: offsets (N + 1,), kinds (E,), events (E, C), numbers (N, F), codes (N, A), label (N,).

        Row i owns the events offsets[i]:offsets[i + 1], oldest first, at most max_events of them.
        """
        tabular = None if state["tabular"] is None else Tabular.from_state(state["tabular"])
        arrays = events.encode(examples, state, self.max_events) | feature_arrays(tabular, examples)
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
        return {**events.batch(arrays, rows), **feature_batch(arrays, rows)}

    def loss(self, module: ChurnLSTM, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) loss; see `yes_no_loss`."""
        return self.yes_no_loss(module(batch).float(), batch["label_B"], module.log_positive_weight)

    def outputs(self, module: ChurnLSTM, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{"score": (B,)}, corrected for class weight or focal loss."""
        return {"score": self.probability(module(batch).float(), module.log_positive_weight)}

    def fitted(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int) -> LSTMModel:
        """The model with trained weights."""
        module = self.module(state)
        module.load_state_dict(dict(weights))
        return LSTMModel(candidate=self, state=dict(state), module=module.eval(), rounds=rounds)


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
            self.codes = Codes(num_codes)
            tower = 4 * hidden
            self.tower = nn.Sequential(
                nn.Linear(num_numbers + sum(self.codes.widths), tower), nn.SiLU(), nn.Dropout(dropout),
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
            embedded = self.codes.embedded(batch["codes_BA"])
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
class LSTMModel(FittedNetwork):
    """A fitted LSTM, on the CPU."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, the probability of label 1."""
        arrays = self.encoded(examples)
        order = np.argsort(np.diff(arrays["offsets"]), kind="stable")  # rows of one length need no padding
        return self.answered(arrays, runs_of(order, PREDICT_ROWS), ("score",))
