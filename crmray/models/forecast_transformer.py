"""An attention forecaster over all series at once: PatchTST reads the past, each week ahead attends to it.

The encoder is PatchTST of `transformers` (Nie et al. 2023): patches of the scaled sales, of whether they are known, and
of each kind of event, with attention over patches and over channels. A decoder of one cross-attention asks it for each
week ahead, from what is known in advance: the season, the events of that week, the same week a year ago. The forecast
is told from a mean of the last quarter and of the week a year ago, weighed by a gate that is learned with it. All
quantiles come out at once, in order, for every week directly (no sampling), trained on the quantile loss.

Shape suffixes: N rows of a table, B of a batch, L weeks of context, C channels, P patches, D width, H weeks ahead, F
numbers known in advance of a week, S numbers of a row, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from crmray.models.forecast_naive import needs_history, year_ago
from crmray.models.forecast_panel import (
    COLUMNS,
    MIDDLE,
    QUANTILES,
    YEAR_WEEKS,
    Panel,
    by_size,
    finish,
    labelled,
    mean,
    season,
)
from crmray.models.network import FittedNetwork, Training
from crmray.models.tabular import check_positive

PREDICT_ROWS = 512
FEW_ROWS = 8_000
FURTHEST = 20.0
"""scaled sales beyond this are cut: one week must not decide alone"""
WINDOWS = (4, 13, 26, 52)


@dataclass(frozen=True, kw_only=True)
class PatchTransformer(Training):
    """Hyper-parameters; `crmray.train` fits it through the DeepSpeed engine."""

    NAME: ClassVar[str] = "patchtst"
    KIND: ClassVar[str] = "torch"
    ARCHITECTURE: ClassVar[str] = "Transformer"
    GRID: ClassVar[dict[str, tuple]] = {"lr": (1e-3, 3e-3), "context_weeks": (52, 104)}

    context_weeks: int = 52
    """Newest weeks that are read; a multiple of patch_weeks."""
    patch_weeks: int = 4
    """Weeks of a patch."""
    hidden: int = 32
    """Width of a patch, of a week ahead, and of the layers over them; a multiple of num_heads."""
    num_layers: int = 2
    """Layers of the encoder."""
    num_heads: int = 4
    """Heads of every attention."""
    dropout: float = 0.1
    """Share of units dropped in training, 0..1."""
    size_weight: float = 0.5
    """Power of a series' size by which it counts among those of its level: 1 as in sums of money, 0 all alike."""
    max_epochs: int = 6
    """Epochs at most."""
    patience: int = 3
    """Epochs without improvement on validation before training ends."""

    def __post_init__(self) -> None:
        check_positive(
            context_weeks=self.context_weeks, patch_weeks=self.patch_weeks, hidden=self.hidden,
            num_layers=self.num_layers, num_heads=self.num_heads,
        )  # fmt: skip
        if self.context_weeks % self.patch_weeks or self.hidden % self.num_heads:
            raise ValueError(
                f"got context_weeks={self.context_weeks}, patch_weeks={self.patch_weeks}, hidden={self.hidden}, "
                f"num_heads={self.num_heads}, expected whole patches and heads"
            )
        super().__post_init__()

    @classmethod
    def for_rows(cls, num_rows: int) -> dict[str, Any]:
        """Defaults that depend on the number of training rows: few rows need smaller batches and more epochs."""
        return {"batch_size": 64, "max_epochs": 16, "patience": 5} if num_rows < FEW_ROWS else {}

    applies = staticmethod(needs_history)

    # -- what the training loop asks for ---------------------------------------------------------------------------

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        """Horizon, levels and kinds of events, as JSON."""
        panel, label_NH, _ = labelled(train)
        return {
            "horizon": label_NH.shape[1],
            "levels": sorted(set(panel.level)),
            "kinds": list(panel.kinds),
        }

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        """Arrays of the rows, float32: past (N, L, C), ahead (N, H, F), row (N, S).

        Beside them level (N,) int64 and size (N,) float64; where there are labels: label (N, H) scaled, 0 where not
        known, and weight (N, H) in the loss.
        """
        panel = Panel.of(examples)
        panel.expect(state["kinds"])
        size_N = panel.scale()
        arrays = {
            "past": _past(panel, size_N, self.context_weeks),
            "ahead": _ahead(panel, size_N, state["horizon"]),
            "row": _row(panel, size_N),
            "level": np.array([_code(state["levels"], name) for name in panel.level], np.int64),
            "size": size_N,
        }
        if panel.label is not None and panel.weight is not None:
            known_NH = np.isfinite(panel.label)
            weight_N = by_size(size_N, np.array(panel.level, dtype=object), self.size_weight)
            arrays["label"] = _cut(np.nan_to_num(panel.label) / size_N[:, None])
            arrays["weight"] = (known_NH * panel.weight * weight_N[:, None]).astype(np.float32)
        return arrays

    def module(self, state: Mapping[str, Any]) -> PatchForecaster:
        """A fresh module of the right sizes."""
        return PatchForecaster(
            context_weeks=self.context_weeks, patch_weeks=self.patch_weeks, hidden=self.hidden,
            num_layers=self.num_layers, num_heads=self.num_heads, dropout=self.dropout,
            num_kinds=len(state["kinds"]), num_levels=len(state["levels"]) + 1,
        )  # fmt: skip

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows as tensors."""
        return {name: torch.from_numpy(values[rows]) for name, values in arrays.items()}

    def loss(self, module: PatchForecaster, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) quantile loss in units of the series' size, mean over weeks and quantiles, times the weights."""
        miss_BHQ = batch["label"].unsqueeze(2) - module(batch).float()
        levels_Q = torch.tensor(QUANTILES, dtype=miss_BHQ.dtype, device=miss_BHQ.device)
        loss_BHQ = torch.maximum(levels_Q * miss_BHQ, (levels_Q - 1) * miss_BHQ)
        return (loss_BHQ.mean(2) * batch["weight"]).mean(1)

    def outputs(self, module: PatchForecaster, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A (B, H) for each of COLUMNS, in the unit of the sales."""
        quantiles_BHQ = module(batch).double() * batch["size"][:, None, None]
        return {name: quantiles_BHQ[:, :, q] for q, name in enumerate(COLUMNS)}

    def fitted(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int) -> PatchModel:
        """The model with trained weights."""
        module = self.module(state)
        module.load_state_dict(dict(weights))
        # In double precision the answer to a row does not depend on the rows beside it, also for large sales.
        return PatchModel(candidate=self, state=dict(state), module=module.double().eval(), rounds=rounds)


def _code(levels: list[str], name: str) -> int:
    """Place of a level, after 0 for one that training did not have."""
    return levels.index(name) + 1 if name in levels else 0


def _cut(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -FURTHEST, FURTHEST).astype(np.float32)


def _past(panel: Panel, size_N: np.ndarray, weeks: int) -> np.ndarray:
    """(N, L, C): scaled sales (0 where not known), whether they are known, a flag for each kind of event."""
    length = panel.values.shape[1]
    padding = ((0, 0), (max(0, weeks - length), 0))
    values_NL = np.pad(panel.values, padding, constant_values=np.nan)[:, -weeks:]
    events_NLK = np.pad(np.nan_to_num(panel.events[:, :length]), (*padding, (0, 0)))[:, -weeks:]
    known_NL = np.isfinite(values_NL)
    scaled_NL = _cut(np.nan_to_num(values_NL) / size_N[:, None])
    return np.concatenate([scaled_NL[:, :, None], known_NL[:, :, None], events_NLK], axis=2).astype(np.float32)


def _ahead(panel: Panel, size_N: np.ndarray, horizon: int) -> np.ndarray:
    """(N, H, F): how far ahead, the season, the same week a year ago and whether it is known, events."""
    step_H = np.arange(horizon)
    far_NH1 = np.broadcast_to(((step_H + 1) / horizon)[None, :, None], (len(panel), horizon, 1))
    before_NH = year_ago(panel, horizon)
    known_NH = np.isfinite(before_NH)
    scaled_NH = _cut(np.nan_to_num(before_NH) / size_N[:, None])
    parts = [far_NH1, season(panel.week[:, None] + step_H), scaled_NH[:, :, None], known_NH[:, :, None]]
    return np.concatenate([*parts, panel.event_weeks(horizon)], axis=2).astype(np.float32)


NUM_AHEAD = 7  # of F: how far, four of the season, a year ago and whether it is known
YEAR_AGO, YEAR_KNOWN = 5, 6  # their places in F
QUARTER = 1  # place of the mean of the last quarter in S: WINDOWS[1]


def _row(panel: Panel, size_N: np.ndarray) -> np.ndarray:
    """(N, S): means of the newest weeks, share of them without a sale, length of the history, logarithm of the size."""
    columns = [np.nan_to_num(mean(panel.values[:, -weeks:])) / size_N for weeks in WINDOWS]
    empty_NL = np.where(np.isfinite(panel.values), panel.values == 0, np.nan)
    columns += [np.nan_to_num(mean(empty_NL[:, -weeks:])) for weeks in WINDOWS]
    columns += [np.minimum(np.isfinite(panel.values).sum(1) / (2 * YEAR_WEEKS), 2.0), np.log(size_N) / 10]
    return _cut(np.stack(columns, axis=1))


NUM_ROW = 2 * len(WINDOWS) + 2


class PatchForecaster(nn.Module):
    """Past and what is known in advance -> quantiles of each week ahead, in units of the series' size."""

    def __init__(
        self, *, context_weeks: int, patch_weeks: int, hidden: int, num_layers: int, num_heads: int, dropout: float,
        num_kinds: int, num_levels: int,
    ):  # fmt: skip
        super().__init__()
        from transformers import PatchTSTConfig, PatchTSTModel

        self.encoder = PatchTSTModel(
            PatchTSTConfig(
                num_input_channels=2 + num_kinds, context_length=context_weeks, patch_length=patch_weeks,
                patch_stride=patch_weeks, d_model=hidden, num_hidden_layers=num_layers, num_attention_heads=num_heads,
                ffn_dim=2 * hidden, channel_attention=True, norm_type="layernorm", scaling=None,
                attention_dropout=dropout, ff_dropout=dropout, path_dropout=0.0, positional_dropout=0.0,
            )
        )  # fmt: skip
        self.level = nn.Embedding(num_levels, 4)
        self.ask = nn.Linear(NUM_AHEAD + num_kinds + NUM_ROW + 4, hidden)
        self.attend = nn.MultiheadAttention(hidden, num_heads, dropout=dropout, batch_first=True)
        self.head = nn.Sequential(
            nn.LayerNorm(2 * hidden), nn.Linear(2 * hidden, 2 * hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(2 * hidden, len(QUANTILES) + 1),
        )  # fmt: skip

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, H, Q), ascending over Q."""
        kind = self.ask.weight.dtype
        states_BCPD = self.encoder(past_values=batch["past"].to(kind)).last_hidden_state
        seen_BSD = states_BCPD.flatten(1, 2)
        ahead_BHF = batch["ahead"].to(kind)
        row_BS = torch.cat([batch["row"].to(kind), self.level(batch["level"])], dim=1)
        row_BHS = row_BS.unsqueeze(1).expand(-1, ahead_BHF.shape[1], -1)
        asked_BHD = nn.functional.gelu(self.ask(torch.cat([ahead_BHF, row_BHS], dim=2)))
        found_BHD, _ = self.attend(asked_BHD, seen_BSD, seen_BSD, need_weights=False)
        raw_BHQ, gate_BH1 = self.head(torch.cat([asked_BHD, found_BHD], dim=2)).split([len(QUANTILES), 1], dim=2)
        quarter_B11 = row_BS[:, None, QUARTER : QUARTER + 1]
        before_BH1, known_BH1 = ahead_BHF[:, :, YEAR_AGO : YEAR_AGO + 1], ahead_BHF[:, :, YEAR_KNOWN : YEAR_KNOWN + 1]
        base_BH1 = quarter_B11 + gate_BH1.sigmoid() * known_BH1 * (before_BH1 - quarter_B11)
        middle_BH1 = base_BH1 + raw_BHQ[:, :, MIDDLE : MIDDLE + 1]
        steps_BHQ = nn.functional.softplus(raw_BHQ) / 4
        below = -steps_BHQ[:, :, :MIDDLE].flip(2).cumsum(2).flip(2)
        above = steps_BHQ[:, :, MIDDLE + 1 :].cumsum(2)
        return torch.cat([middle_BH1 + below, middle_BH1, middle_BH1 + above], dim=2)


@dataclass(frozen=True, kw_only=True)
class PatchModel(FittedNetwork):
    """A fitted forecaster, on the CPU; its weights are in double precision."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """Quantiles, each (N, H)."""
        panel, arrays = Panel.of(examples), self.candidate.encode(self.state, examples)
        quantiles = np.zeros((len(panel), self.state["horizon"], len(QUANTILES)))
        with torch.inference_mode():
            for start in range(0, len(panel), PREDICT_ROWS):
                rows = np.arange(start, min(start + PREDICT_ROWS, len(panel)))
                scaled = self.module(self.candidate.batch(arrays, rows)).numpy()
                quantiles[rows] = scaled * arrays["size"][rows, None, None]
        return finish(panel, quantiles)
