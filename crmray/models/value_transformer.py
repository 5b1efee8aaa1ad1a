"""A Transformer over a customer's purchases and returns, with a tower for attributes, for purchases and spend.

Encoder: Vaswani et al., "Attention is all you need" (2017), pre-norm, with one summary token in front. Head: the
zero-inflated lognormal of Wang, Liu and Miao, "A deep probabilistic model for customer lifetime value prediction"
(2019): P(purchase), and mu and sigma of the logarithm of the spend of those who buy; beside it the orders beyond the
first, Poisson given a purchase. So E[spend] = P exp(mu + sigma^2 / 2) and E[purchases] = P (1 + surplus).

Orders and returns are the events of these kinds (crmray.models.events), oldest first. Shape suffixes: B rows, T places
(the summary token, then orders, right-padded), C numbers per order, D width, F numbers and A categories per row, N rows
of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from torch.nn import functional as F

from crmray.data.sequences import COLUMNS, EVENT_KINDS
from crmray.errors import NotEnoughDataError, SchemaError
from crmray.models import events
from crmray.models.attention import Block
from crmray.models.columns import feature_columns
from crmray.models.events import FIRST_KIND, NUM_EVENT_NUMBERS, PADDING
from crmray.models.network import Codes, FittedNetwork, Training, feature_arrays, feature_batch, runs_of
from crmray.models.preprocess import Preparation, Tabular
from crmray.models.tabular import check_positive, needs
from crmray.models.value_targets import LABELS, OUTPUTS, PURCHASES, SPEND, targets_of

KINDS = (EVENT_KINDS.index("purchase"), EVENT_KINDS.index("return"))
PREDICT_ROWS = 1024
FURTHEST_MU, LARGEST_SURPLUS = 5.0, 8.0  # standard deviations of log spend; logarithm of orders
SIGMAS = (0.1, 2.0)


@dataclass(frozen=True, kw_only=True)
class ValueTransformer(Training):
    """Hyper-parameters; `crmray.train` fits it through the DeepSpeed engine."""

    NAME: ClassVar[str] = "transformer"
    KIND: ClassVar[str] = "torch"
    ARCHITECTURE: ClassVar[str] = "Transformer"
    GRID: ClassVar[dict[str, tuple]] = {"lr": (3e-4, 1e-3), "dropout": (0.2, 0.4), "num_layers": (1, 2)}

    dim: int = 32
    """Width of the encoder; the attribute tower has twice as many units."""
    num_layers: int = 2
    """Encoder blocks."""
    num_heads: int = 2
    """Attention heads; divides dim."""
    max_events: int = 64
    """Newest orders and returns that are read."""
    max_epochs: int = 10
    """Epochs at most."""
    scale: Literal["minmax", "standard", "quantile"] = "quantile"
    """Scaling of numbers; see `Preparation`. Scaled numbers are kept within network.FURTHEST of 0."""
    min_frequency: int = 10
    """Rows that a category needs for a code of its own."""

    def __post_init__(self) -> None:
        check_positive(dim=self.dim, num_layers=self.num_layers, num_heads=self.num_heads, max_events=self.max_events)
        if self.dim % self.num_heads:
            raise ValueError(f"got dim={self.dim} and num_heads={self.num_heads}, expected dim to be a multiple of it")
        self._preparation()
        super().__post_init__()

    applies = staticmethod(needs(*COLUMNS))

    def _preparation(self) -> Preparation:
        return Preparation(scale=self.scale, min_frequency=self.min_frequency)

    # -- what the training loop asks for ---------------------------------------------------------------------------

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        """Preprocessing and scales learned on training rows, as JSON; see `targets_of` for what is refused."""
        targets = targets_of(train)
        log_spend = np.log(targets.spend[targets.paid])
        orders = events.vocabulary(_orders(train))
        if not orders["kinds"]:
            raise NotEnoughDataError(f"transformer: got {train.num_rows} rows without any order, expected some")
        bought = targets.purchases[targets.bought]
        has_features = any(feature_columns(train.schema, LABELS))
        return {
            **orders,
            "tabular": Tabular.fit(train, self._preparation(), LABELS).state() if has_features else None,
            "log_spend": [float(log_spend.mean()), float(log_spend.std()) or 1.0],
            "odds": float(np.log(targets.bought.sum() + 0.5) - np.log((~targets.bought).sum() + 0.5)),
            "surplus": float(np.log(bought.mean() - 1.0 + 0.01)),
        }

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        """Arrays of the rows: those of `events.encode`, numbers (N, F), codes (N, A), and where they are known spend
        (N,) and purchases (N,)."""
        tabular = None if state["tabular"] is None else Tabular.from_state(state["tabular"])
        arrays = events.encode(_orders(examples), state, self.max_events) | feature_arrays(tabular, examples)
        for name, label in (("spend", SPEND), ("purchases", PURCHASES)):
            if label in examples.column_names and examples[label].null_count == 0:
                arrays[name] = pc.cast(examples[label], pa.float32()).to_numpy()
        return arrays

    def lengths(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N,) orders per row."""
        return np.diff(arrays["offsets"])

    def module(self, state: Mapping[str, Any]) -> OrderEncoder:
        """A fresh module of the right sizes, whose answers begin at the means of training."""
        tabular = None if state["tabular"] is None else Tabular.from_state(state["tabular"])
        return OrderEncoder(
            dim=self.dim, num_layers=self.num_layers, num_heads=self.num_heads, max_events=self.max_events,
            dropout=self.dropout, num_kinds=len(state["kinds"]),
            num_numbers=0 if tabular is None else len(tabular.number_names),
            num_codes=[] if tabular is None else tabular.num_codes, log_spend=state["log_spend"],
            first=(state["odds"], state["surplus"]),
        )  # fmt: skip

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows as tensors; orders right-padded to the longest row of the batch."""
        return {**events.batch(arrays, rows), **feature_batch(arrays, rows, ("spend", "purchases"))}

    def loss(self, module: OrderEncoder, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) negative log-likelihood of buying, of the orders beyond the first, of log spend in standard units."""
        logit_B, surplus_B, mu_B, sigma_B = module(batch)
        bought_B = (batch["purchases_B"] > 0).float()
        paid_B = (batch["spend_B"] > 0).float()
        z_B = (torch.log(batch["spend_B"].clamp(min=1e-6)) - module.log_mean) / module.log_spread
        lognormal_B = torch.log(sigma_B) + 0.5 * ((z_B - mu_B) / sigma_B) ** 2
        poisson_B = torch.exp(surplus_B) - (batch["purchases_B"] - 1.0) * surplus_B
        buying_B = F.binary_cross_entropy_with_logits(logit_B, bought_B, reduction="none")
        scale = 1.0 + module.first_surplus.exp()  # heavy buyers have large counts: in units of the mean
        return buying_B + bought_B * poisson_B / scale + paid_B * lognormal_B

    def outputs(self, module: OrderEncoder, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """OUTPUTS, (B,) each."""
        logit_B, surplus_B, mu_B, sigma_B = (part.double() for part in module(batch))
        p_B = torch.sigmoid(logit_B)
        spread = module.log_spread.double()
        spend_B = p_B * torch.exp(module.log_mean.double() + spread * mu_B + (spread * sigma_B) ** 2 / 2)
        return {"p_purchase": p_B, "purchases": p_B * (1.0 + torch.exp(surplus_B)), "spend": spend_B}

    def fitted(
        self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int
    ) -> ValueTransformerModel:
        """The model with trained weights."""
        module = self.module(state)
        module.load_state_dict(dict(weights))
        # In double precision, so that an amount in the thousands is the same alone and in a batch.
        return ValueTransformerModel(candidate=self, state=dict(state), module=module.double().eval(), rounds=rounds)


def _orders(examples: pa.Table) -> pa.Table:
    """The event lists with the orders and returns alone. SchemaError as `events.encode`."""
    missing = [name for name in COLUMNS if name not in examples.column_names]
    if missing:
        raise SchemaError(f"column {missing[0]!r} is missing; expected it as a sequence, as in training")
    lists = [examples[name].combine_chunks() for name in COLUMNS]
    owner = pc.list_parent_indices(lists[0])
    ours = pc.is_in(lists[0].flatten(), value_set=pa.array(KINDS, lists[0].type.value_type))
    counts = np.bincount(owner.filter(ours).to_numpy(), minlength=examples.num_rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    found = {}
    for name, values in zip(COLUMNS, lists, strict=True):
        flat = values.flatten()
        if not pc.list_value_length(values).fill_null(0).equals(pc.list_value_length(lists[0]).fill_null(0)):
            raise SchemaError(f"column {name!r}: its lists differ in length from those of {COLUMNS[0]!r}")
        found[name] = pa.ListArray.from_arrays(offsets, flat.filter(ours))
    return pa.table(found)


class OrderEncoder(nn.Module):
    """Orders -> Transformer -> summary token; attributes -> tower; both -> four numbers of the distribution."""

    def __init__(
        self, *, dim: int, num_layers: int, num_heads: int, max_events: int, dropout: float, num_kinds: int,
        num_numbers: int, num_codes: list[int], log_spend: list[float], first: tuple[float, float],
    ):  # fmt: skip
        super().__init__()
        self.kind = nn.Embedding(num_kinds + FIRST_KIND, dim, padding_idx=PADDING)
        self.order, self.place = nn.Linear(NUM_EVENT_NUMBERS, dim), nn.Embedding(max_events, dim)
        self.summary_D = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.place.weight, std=0.02)
        self.codes = Codes(num_codes)
        features, tower = num_numbers + sum(self.codes.widths), 2 * dim
        self.tower = None if not features else nn.Sequential(
            nn.Linear(features, tower), nn.SiLU(), nn.Dropout(dropout), nn.Linear(tower, tower), nn.SiLU()
        )  # fmt: skip
        width = dim + (tower if features else 0)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, tower), nn.SiLU(), nn.Linear(tower, 4))
        self.log_mean: torch.Tensor
        self.log_spread: torch.Tensor
        self.first_odds: torch.Tensor
        self.first_surplus: torch.Tensor
        for name, value in (("log_mean", log_spend[0]), ("log_spread", log_spend[1]), ("first_odds", first[0]),
                            ("first_surplus", first[1])):  # fmt: skip
            self.register_buffer(name, torch.tensor(value))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """(B,) each: log odds of a purchase, log of the orders beyond the first, mu and sigma of log spend in standard
        units."""
        kinds_BT, length_B = batch["kinds_BT"], batch["length_B"]
        steps_T = torch.arange(kinds_BT.shape[1], device=kinds_BT.device)
        place_BT = (length_B[:, None] - 1 - steps_T).clamp(min=0)  # 0 is the newest
        orders_BTD = self.kind(kinds_BT) + self.order(batch["events_BTC"]) + self.place(place_BT)
        x_BTD = torch.cat([self.summary_D.expand(len(kinds_BT), 1, -1), orders_BTD], dim=1)
        seen_B11T = F.pad(kinds_BT != PADDING, (1, 0), value=True)[:, None, None, :]
        for block in self.blocks:
            x_BTD = block(x_BTD, seen_B11T)
        parts = [self.norm(x_BTD[:, 0])]
        if self.tower is not None:
            embedded = self.codes.embedded(batch["codes_BA"])
            parts.append(self.tower(torch.cat([batch["numbers_BF"], *embedded], dim=1)))
        answers_B4 = self.head(torch.cat(parts, dim=1))
        answers_B4 = answers_B4.to(torch.promote_types(answers_B4.dtype, torch.float32))
        logit_B, surplus_B, mu_B, sigma_B = answers_B4.unbind(1)
        return (
            logit_B + self.first_odds,
            (surplus_B + self.first_surplus).clamp(max=LARGEST_SURPLUS),
            mu_B.clamp(-FURTHEST_MU, FURTHEST_MU),
            F.softplus(sigma_B + 0.5413).clamp(*SIGMAS),  # softplus(0.5413) = 1
        )


@dataclass(frozen=True, kw_only=True)
class ValueTransformerModel(FittedNetwork):
    """A fitted Transformer, its float32 weights held in float64."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """OUTPUTS."""
        arrays = self.encoded(examples, LABELS)
        order = np.argsort(np.diff(arrays["offsets"]), kind="stable")  # rows of one length need no padding
        return self.answered(arrays, runs_of(order, PREDICT_ROWS), OUTPUTS)

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows as tensors, in double precision as the weights are held."""
        made = self.candidate.batch(arrays, rows)
        return {name: values.double() if values.is_floating_point() else values for name, values in made.items()}
