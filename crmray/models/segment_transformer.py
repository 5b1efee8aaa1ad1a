"""A Transformer that tells a customer's segment from the events alone, as k-means over features would.

It is for those whose features do not say much yet: new customers. Its teacher is k-means on the same rows; it learns on
the training part of the customers, stops early by the validation part, and the test part says how often both agree.

Shape suffixes: B rows, T steps of time (events, right-padded), C numbers per event, D width, K segments, N rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from crmray.data.splits import PARTS
from crmray.errors import SchemaError
from crmray.models import events
from crmray.models.events import EVENT_COLUMNS, FIRST_KIND, NUM_EVENT_NUMBERS, PADDING
from crmray.models.kmeans import KMeans, check_dormant_weeks, check_num_segments
from crmray.models.network import Training
from crmray.models.segments import BEFORE, Segments
from crmray.models.tabular import check_positive, file_of, needs, to_json

TRAIN, VALIDATION = PARTS.index("train"), PARTS.index("validation")
PREDICT_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class SegmentTransformer(Training):
    """Hyper-parameters; `crmray.train` fits it through the DeepSpeed engine."""

    NAME: ClassVar[str] = "transformer"
    KIND: ClassVar[str] = "torch"
    ARCHITECTURE: ClassVar[str] = "Transformer"
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {"lr": (1e-3, 3e-3)}

    num_segments: int | None = None
    """K of the teacher; None: as k-means chooses it"""
    dormant_weeks: int | None = None
    """as k-means has it, of the teacher"""
    adaptive: bool = False
    """as k-means has it, of the teacher"""
    dim: int = 32
    """width"""
    num_layers: int = 1
    """blocks"""
    num_heads: int = 4
    """attention heads"""
    max_events: int = 64
    """newest events that are read"""
    dropout: float = 0.1
    """share of units dropped in training, 0..1"""
    lr: float = 3e-3
    """largest learning rate"""
    max_epochs: int = 15
    """epochs at most"""
    patience: int = 3
    """epochs without improvement on validation before training ends"""

    def __post_init__(self) -> None:
        check_positive(dim=self.dim, num_layers=self.num_layers, num_heads=self.num_heads, max_events=self.max_events)
        if self.dim % self.num_heads:
            raise ValueError(f"got dim={self.dim} and num_heads={self.num_heads}, expected dim to be a multiple of it")
        check_num_segments(self.num_segments)
        check_dormant_weeks(self.dormant_weeks)
        super().__post_init__()

    applies = staticmethod(needs(*EVENT_COLUMNS))

    # -- what the training loop asks for -------------------------------------------------------------------------------

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        """The teacher, fitted on all rows, and the vocabulary of the training part's events."""
        mine = train.filter(pa.array(_parts(train) == TRAIN))
        teacher = KMeans(num_segments=self.num_segments, dormant_weeks=self.dormant_weeks, adaptive=self.adaptive)
        return {"teacher": _fitted(teacher, train), **events.vocabulary(mine)}

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        """Arrays of the rows: those of `events.encode`, the teacher's segment (N,), and the part of the customer (N,).

        Without `part`, as at an endpoint, rows are of no part.
        """
        arrays = events.encode(examples, state, self.max_events)
        arrays["segment"] = state["teacher"].predict(examples)["segment"]
        arrays["part"] = _parts(examples)
        return arrays

    def lengths(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N,) events per row."""
        return np.diff(arrays["offsets"])

    def module(self, state: Mapping[str, Any]) -> EventTransformer:
        """A fresh module of the right sizes."""
        return EventTransformer(
            num_kinds=len(state["kinds"]), num_segments=len(state["teacher"].centers_KD), dim=self.dim,
            num_layers=self.num_layers, num_heads=self.num_heads, dropout=self.dropout,
        )  # fmt: skip

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows as tensors."""
        own = {"segment_B": torch.from_numpy(arrays["segment"][rows]), "part_B": torch.from_numpy(arrays["part"][rows])}
        return {**events.batch(arrays, rows), **own}

    def loss(self, module: EventTransformer, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) cross-entropy with the teacher's segment; 0 for customers of other parts than the one that counts."""
        losses_B = nn.functional.cross_entropy(module(batch).float(), batch["segment_B"], reduction="none")
        return losses_B * (batch["part_B"] == (TRAIN if module.training else VALIDATION))

    def fitted(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int) -> FittedTransformer:
        """The model with trained weights."""
        module = self.module(state)
        module.load_state_dict(dict(weights))
        return FittedTransformer(candidate=self, state=dict(state), module=module.eval(), rounds=rounds)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedTransformer:
        """The model that `save` wrote."""
        about = json.loads(file_of(files, "transformer.json"))
        state = {"teacher": Segments.from_files(files), **about["vocabulary"]}
        weights = load_tensors(file_of(files, "weights.safetensors"))
        return SegmentTransformer(**about["settings"]).fitted(state, weights, about["rounds"])


def _parts(examples: pa.Table) -> np.ndarray:
    """(N,) int64 place of each row's part in PARTS, -1 without one."""
    if "part" not in examples.column_names:
        return np.full(examples.num_rows, -1)
    place = {part: number for number, part in enumerate(PARTS)}
    return np.array([place.get(part, -1) for part in examples["part"].to_pylist()], np.int64)


def _fitted(candidate: KMeans, rows: pa.Table) -> Segments:
    """k-means on these rows, as on one shard."""
    state, done = candidate.start(rows, 0), False
    while not done:
        state, done = candidate.reduce(state, [candidate.map(state, rows)])
    return candidate.fitted(state)


def _earlier(rows: pa.Table) -> pa.Table:
    """The events as they stood one horizon earlier; SchemaError where they are missing."""
    names = [BEFORE + name for name in EVENT_COLUMNS]
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise SchemaError(f"column {missing[0]!r} is missing; expected it beside the features of the same date")
    return rows.select(names).rename_columns(EVENT_COLUMNS)


class EventTransformer(nn.Module):
    """Events -> self-attention in both directions -> mean over the events -> segment."""

    def __init__(self, *, num_kinds: int, num_segments: int, dim: int, num_layers: int, num_heads: int, dropout: float):
        super().__init__()
        self.kind = nn.Embedding(num_kinds + FIRST_KIND, dim, padding_idx=PADDING)
        self.numbers = nn.Linear(NUM_EVENT_NUMBERS, dim)
        block = nn.TransformerEncoderLayer(
            dim, num_heads, 4 * dim, dropout, nn.functional.gelu, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, num_layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim + 1, num_segments)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, K) logits. A row without events is told by their number alone."""
        real_BT = batch["kinds_BT"] != PADDING
        some_B1 = real_BT.any(1, keepdim=True)
        seen_BT = real_BT | ~some_B1  # attention over nothing at all would be NaN
        x_BTD = self.kind(batch["kinds_BT"]) + self.numbers(batch["events_BTC"])
        x_BTD = self.blocks(x_BTD, src_key_padding_mask=~seen_BT)
        count_B1 = batch["length_B"].clamp(min=1).unsqueeze(1).to(x_BTD.dtype)
        mean_BD = (x_BTD * real_BT.unsqueeze(2)).sum(1) / count_B1
        return self.head(torch.cat([mean_BD, torch.log(count_B1) * some_B1], dim=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedTransformer:
    """The trained Transformer with its teacher."""

    candidate: SegmentTransformer
    """its hyper-parameters"""
    state: dict[str, Any]
    """teacher and vocabulary"""
    module: EventTransformer
    """on the CPU, in evaluation mode"""
    rounds: int | None
    """epochs that it was trained for"""

    @property
    def columns(self) -> tuple[str, ...]:
        """The features that the teacher groups customers by."""
        return self.state["teacher"].columns

    def with_lifecycle(self, examples: pa.Table) -> pa.Table:
        """As Segments.with_lifecycle."""
        return self.state["teacher"].with_lifecycle(examples)

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """As Segments.predict, with segment and previous by the events of each date, and `teacher` int64 (N,), the
        segment by the features."""
        teacher: Segments = self.state["teacher"]
        known = teacher.predict(examples)
        segment, previous = self._told(examples), known["previous"].copy()
        there = np.flatnonzero(previous >= 0)
        if len(there):
            previous[there] = self._told(_earlier(examples.take(pa.array(there))))
        distance = teacher.distance(known["position"], segment)
        return {**known, "segment": segment, "previous": previous, "distance": distance, "teacher": known["segment"]}

    def _told(self, rows: pa.Table) -> np.ndarray:
        """(N,) int64 segment by the events."""
        segment = np.zeros(rows.num_rows, np.int64)
        arrays = events.encode(rows, self.state, self.candidate.max_events)
        order = np.argsort(np.diff(arrays["offsets"]), kind="stable")  # rows of one length need no padding
        with torch.inference_mode():
            for start in range(0, len(order), PREDICT_ROWS):
                places = order[start : start + PREDICT_ROWS]
                segment[places] = self.module(events.batch(arrays, places)).argmax(1).numpy()
        return segment

    def save(self) -> dict[str, bytes]:
        """Files of the teacher, weights as safetensors, the rest as JSON."""
        vocabulary = {name: self.state[name] for name in ("kinds", "value_scales")}
        about = {"settings": asdict(self.candidate), "vocabulary": vocabulary, "rounds": self.rounds}
        weights = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        own = {"weights.safetensors": save_tensors(weights), "transformer.json": to_json(about)}
        return {**self.state["teacher"].save(), **own}
