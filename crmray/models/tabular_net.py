"""Residual network over tabular features, for a label of any kind (crmray.models.labels).

Numbers are turned into piecewise-linear encodings and a small layer each (PLE, Gorishniy et al. 2022, "On embeddings
for numerical features in tabular deep learning"), categories into embeddings; a residual MLP follows (Gorishniy et al.
2021, "Revisiting deep learning models for tabular data"). Scaling, filling and vocabularies are those of
`crmray.models.preprocess`.

Shape suffixes: B rows, F numeric columns, M missing flags, A categorical columns, T bins of a number, E width of a
number's embedding, D width of the network, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from crmray.models.labels import CLASS_SCORE, LABEL, Kind, Target, check_imbalance
from crmray.models.network import Codes, FittedNetwork, Network, feature_arrays, feature_batch, runs_of
from crmray.models.preprocess import Tabular
from crmray.models.tabular import check_positive, check_some_feature, needs_features

PREDICT_ROWS = 4096
FEW_ROWS = 5_000


@dataclass(frozen=True, kw_only=True)
class TabularNet(Network):
    """Hyper-parameters; `crmray.train` fits it through the DeepSpeed engine."""

    NAME: ClassVar[str] = "tabular_net"
    KIND: ClassVar[str] = "torch"
    ARCHITECTURE: ClassVar[str] = "feed-forward"
    GRID: ClassVar[dict[str, tuple]] = {"dropout": (0.1, 0.4), "lr": (1e-3, 3e-3), "num_bins": (0, 16)}

    hidden: int = 128
    """Width of the network."""
    num_layers: int = 2
    """Residual blocks."""
    num_bins: int = 0
    """Bins of a number's piecewise-linear encoding, which sees steps and bends but no trend beyond its last bin; 0: the
    scaled number alone."""
    number_width: int = 8
    """Width of a number's embedding."""
    kind: Kind = "yes_no"
    """What the label is: yes or no, a number (predicted as a standard score of training), or one of several classes."""

    def __post_init__(self) -> None:
        check_positive(hidden=self.hidden, num_layers=self.num_layers, number_width=self.number_width)
        if self.num_bins < 0 or self.num_bins == 1:
            raise ValueError(f"got num_bins={self.num_bins}, expected 0 or at least 2 bins")
        check_imbalance(self.kind, self.imbalance, ("none", "weights", "focal") if self.kind == "yes_no" else ("none",))
        super().__post_init__()

    @classmethod
    def for_rows(cls, num_rows: int) -> dict[str, Any]:
        """Defaults that depend on the number of training rows: few rows need smaller batches and more epochs."""
        few = {"hidden": 64, "batch_size": 64, "max_epochs": 40, "patience": 8}
        return few if num_rows < FEW_ROWS else {}

    applies = staticmethod(needs_features)

    # -- what the training loop asks for ---------------------------------------------------------------------------

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        """Preprocessing learned on training rows, as JSON. NotEnoughDataError when there is nothing to learn from."""
        target = Target.fit(train, self.kind)
        labels = target.values(train)
        tabular = self.fit_tabular(train, self.kind, seed=0)
        check_some_feature(tabular)
        numbers_NF = feature_arrays(tabular, train)["numbers"][:, : len(tabular.numeric)]
        return {
            "tabular": tabular.state(),
            "edges": [_edges(values, self.num_bins) for values in numbers_NF.T] if self.num_bins else [],
            "positive_weight": self.positive_weight(labels),
            "target": target.state(),
            "centre_spread": [float(labels.mean()), float(labels.std())] if self.kind == "number" else [0.0, 1.0],
        }

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        """Arrays of the rows: numbers (N, F + M) float32, codes (N, A), label (N,) where there is one."""
        tabular = Tabular.from_state(state["tabular"])
        arrays = feature_arrays(tabular, examples)
        if LABEL in examples.column_names and examples[LABEL].null_count == 0:
            centre, spread = state["centre_spread"]
            values = Target.from_state(state["target"]).values(examples)
            arrays["label"] = values if self.kind == "class" else ((values - centre) / spread).astype(np.float32)
        return arrays

    def module(self, state: Mapping[str, Any]) -> ResidualNet:
        """A fresh module of the right sizes."""
        tabular = Tabular.from_state(state["tabular"])
        return ResidualNet(
            num_numbers=len(tabular.number_names),
            edges=state["edges"],
            num_codes=tabular.num_codes,
            hidden=self.hidden,
            num_layers=self.num_layers,
            number_width=self.number_width,
            dropout=self.dropout,
            log_positive_weight=math.log(state["positive_weight"]),
            classes=state["target"]["classes"],
            centre_spread=state["centre_spread"],
        )

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows as tensors."""
        return feature_batch(arrays, rows)

    def loss(self, module: ResidualNet, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) loss of the kind: squared error of standard scores, cross entropy, or that of `yes_no_loss`."""
        logit_B, label_B = module(batch).float(), batch["label_B"]  # of classes (B, K)
        if self.kind == "class":  # rows of a class that training did not have weigh nothing
            return nn.functional.cross_entropy(logit_B, label_B, reduction="none", ignore_index=-1)
        if self.kind == "number":
            return (logit_B - label_B) ** 2
        return self.yes_no_loss(logit_B, label_B, module.log_positive_weight)

    def outputs(self, module: ResidualNet, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{"score": (B,)}, corrected for class weight or focal loss; of classes {"p:<class>": (B,)}."""
        logit_B = module(batch).float()
        if self.kind == "class":
            probability_KB = logit_B.softmax(1).T
            return {f"{CLASS_SCORE}{name}": probability_KB[k] for k, name in enumerate(module.classes)}
        if self.kind == "number":
            return {"score": logit_B * module.spread + module.centre}
        return {"score": self.probability(logit_B, module.log_positive_weight)}

    def fitted(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int) -> TabularNetModel:
        """The model with trained weights."""
        module = self.module(state)
        module.load_state_dict(dict(weights))
        return TabularNetModel(candidate=self, state=dict(state), module=module.eval(), rounds=rounds)


def _edges(values: np.ndarray, num_bins: int) -> list[float]:
    """Ascending distinct bin edges of a number at its training quantiles: two at least, num_bins + 1 at most."""
    edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, num_bins + 1)).astype(np.float32))
    return edges.tolist() if len(edges) > 1 else [float(edges[0]), float(edges[0]) + 1.0]


class PiecewiseLinear(nn.Module):
    """Numbers -> their place in each bin: 1 below the value, 0 above it, the share passed in its own bin; then a
    layer of each number's own."""

    def __init__(self, edges: list[list[float]], width: int):
        super().__init__()
        size = max(len(own) for own in edges) - 1
        low_FT, width_FT = torch.zeros(len(edges), size), torch.ones(len(edges), size)
        used_FT = torch.zeros(len(edges), size)  # numbers with few distinct values have fewer bins
        for f, own in enumerate(edges):
            ends = torch.tensor(own)
            bins = len(own) - 1
            low_FT[f, :bins], width_FT[f, :bins], used_FT[f, :bins] = ends[:-1], ends.diff(), 1.0
        self.low_FT: torch.Tensor
        self.width_FT: torch.Tensor
        self.used_FT: torch.Tensor
        for name, values in (("low_FT", low_FT), ("width_FT", width_FT), ("used_FT", used_FT)):
            self.register_buffer(name, values)
        self.weight_FTE = nn.Parameter(torch.randn(len(edges), size, width) / math.sqrt(size))
        self.bias_FE = nn.Parameter(torch.zeros(len(edges), width))

    def forward(self, numbers_BF: torch.Tensor) -> torch.Tensor:
        """(B, F · E)."""
        passed_BFT = ((numbers_BF.unsqueeze(2) - self.low_FT) / self.width_FT).clamp(0.0, 1.0) * self.used_FT
        embedded_BFE = torch.einsum("bft,fte->bfe", passed_BFT.to(self.weight_FTE.dtype), self.weight_FTE)
        return nn.functional.relu(embedded_BFE + self.bias_FE).flatten(1)


class ResidualNet(nn.Module):
    """Embeddings of numbers and categories -> residual blocks -> one logit, or one for each class."""

    def __init__(
        self, *, num_numbers: int, edges: list[list[float]], num_codes: list[int], hidden: int, num_layers: int,
        number_width: int, dropout: float, log_positive_weight: float, classes: Sequence[str] = (),
        centre_spread: Sequence[float] = (0.0, 1.0),
    ):  # fmt: skip
        super().__init__()
        self.classes, (self.centre, self.spread) = tuple(classes), centre_spread
        self.num_encoded = len(edges)
        self.pieces = PiecewiseLinear(edges, number_width) if edges else None
        self.codes = Codes(num_codes)
        self.first = nn.Linear(num_numbers + len(edges) * number_width + sum(self.codes.widths), hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Dropout(dropout),
                nn.Linear(2 * hidden, hidden), nn.Dropout(dropout / 2),
            )
            for _ in range(num_layers)
        )  # fmt: skip
        self.last = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, max(1, len(classes))))
        self.log_positive_weight: torch.Tensor
        self.register_buffer("log_positive_weight", torch.tensor(log_positive_weight))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) logits; (B, K) for several outputs."""
        numbers_BF, codes_BA = batch["numbers_BF"], batch["codes_BA"]
        parts = [numbers_BF, *self.codes.embedded(codes_BA)]
        if self.pieces is not None:
            parts.append(self.pieces(numbers_BF[:, : self.num_encoded]))
        x_BD = self.first(torch.cat([part.to(self.first.weight.dtype) for part in parts], dim=1))
        for block in self.blocks:
            x_BD = x_BD + block(x_BD)
        return self.last(x_BD).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class TabularNetModel(FittedNetwork):
    """A fitted network, on the CPU."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """{"score": float64 (N,)}, or of classes the probability of each; see Target.scores."""
        names = Target.from_state(self.state["target"]).empty()
        return self.answered(self.encoded(examples), runs_of(np.arange(examples.num_rows), PREDICT_ROWS), names)
