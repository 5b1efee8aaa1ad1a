"""SASRec: a causal Transformer that reads what a customer bought and says what comes next.

Source: Kang and McAuley, "Self-attentive sequential recommendation" (ICDM 2018), with the softmax over the catalogue in
place of one sampled negative (Klenitskiy and Vasilev, RecSys 2023), and the time since the visit before as one more
input. Sequences are padded on the right: under the causal mask nothing real ever sees padding.

Shape suffixes: B rows, L places of a sequence, D width, H heads, I items, T targets, K places of a ranking, P
supervised places of a batch, S sampled items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from safetensors import torch as safetensors
from torch import nn
from torch.nn import functional as F

from crmray.models import histories, ranking
from crmray.models.attention import Block
from crmray.models.histories import Catalogue, Histories
from crmray.models.neighbours import needs_history
from crmray.models.network import Training
from crmray.models.tabular import check_positive, file_of, to_json

NUM_GAP_BUCKETS = 14
"""0: the same visit; 1: up to a day before; doubling from there"""
MAX_TARGETS = 100
TOP_K = 10


def gap_buckets(gap_days: np.ndarray) -> np.ndarray:
    """Bucket 0..NUM_GAP_BUCKETS - 1 of the days since the entry before."""
    buckets = np.ceil(np.log2(np.maximum(gap_days, 1.0))) + 1
    return np.where(gap_days > 0, np.minimum(buckets, NUM_GAP_BUCKETS - 1), 0).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class SASRec(Training):
    """Hyper-parameters of the Transformer."""

    NAME: ClassVar[str] = "sasrec"
    KIND: ClassVar[str] = "torch"
    ARCHITECTURE: ClassVar[str] = "Transformer"
    GRID: ClassVar[dict[str, tuple]] = {"dropout": (0.2, 0.5)}

    dim: int = 64
    """width of the item embeddings and of the network"""
    num_layers: int = 2
    """Transformer blocks"""
    num_heads: int = 2
    """attention heads; divides dim"""
    max_length: int = 50
    """newest entries of a history that are read"""
    full_softmax_items: int = 20_000
    """catalogues up to this size are normalised over all products, larger ones over a sample"""
    num_sampled: int = 2_048
    """products drawn per batch for a larger catalogue"""
    lr: float = 3e-3
    """largest learning rate"""
    warmup_share: float = 0.02
    """share of all steps in which the learning rate rises from 0"""
    patience: int = 3
    """epochs without a better validation figure after which training ends"""

    def __post_init__(self) -> None:
        check_positive(
            dim=self.dim, num_layers=self.num_layers, num_heads=self.num_heads, max_length=self.max_length - 1,
            num_sampled=self.num_sampled,
        )  # fmt: skip
        if self.dim % self.num_heads:
            raise ValueError(f"got dim={self.dim} and num_heads={self.num_heads}, expected dim to be a multiple of it")
        super().__post_init__()

    applies = staticmethod(needs_history)

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        """The catalogue, and the mean number of supervised places per customer, which scales the loss."""
        train = histories.training(train)
        catalogue = Catalogue.of(train)
        lengths = np.minimum(histories.encode(train, catalogue).distinct().lengths, self.max_length)
        return {"catalogue": catalogue, "labels_per_row": max(1.0, float(np.maximum(lengths - 1, 0).mean()))}

    training_rows = staticmethod(histories.training)

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        """`items`, `gaps` (N, L) padded on the right with I and 0, `length` (N,), `targets` (N, T) padded with -1."""
        catalogue = state["catalogue"]
        bought = histories.encode(examples, catalogue).distinct()
        return {
            **sequences(bought, len(catalogue), self.max_length),
            "targets": _targets(catalogue, histories.column_of(examples, "target")),
        }

    def lengths(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N,) sequence lengths: rows of similar length share a batch."""
        return arrays["length"]

    def module(self, state: Mapping[str, Any]) -> CausalTransformer:
        """The network; item biases start at the logarithm of popularity."""
        buyers = torch.from_numpy(state["catalogue"].buyers.astype(np.float32))
        module = CausalTransformer(_sizes(self, len(buyers)))
        module.labels_per_row = state["labels_per_row"]
        with torch.no_grad():
            module.bias_I.copy_(torch.log(buyers / buyers.sum()))
        return module

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Tensors of these rows, no longer than their longest sequence."""
        longest = max(2, int(arrays["length"][rows].max()))
        cut = {name: arrays[name][rows, :longest] for name in ("items", "gaps")}
        cut |= {name: arrays[name][rows] for name in ("length", "targets")}
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in cut.items()}

    def loss(self, module: CausalTransformer, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) cross-entropy: in training of each entry after those before it, in units of the mean number of entries;
        in evaluation of the targets after the last entry."""
        if not module.training:
            return module.target_loss(batch)
        return module.sequence_loss(batch, self.full_softmax_items, self.num_sampled)

    def outputs(self, module: CausalTransformer, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`hits` (B, K): whether the K best products that are not in the sequence are among the targets."""
        scores_BI = module.next_scores(batch)
        scores_BI = F.pad(scores_BI, (0, 1)).scatter(1, batch["items"], -torch.inf)[:, :-1]
        best_BK = scores_BI.topk(min(TOP_K, scores_BI.shape[1]), dim=1).indices
        hits_BK = (best_BK[:, :, None] == batch["targets"][:, None, :]).any(-1)
        return {"hits": F.pad(hits_BK, (0, TOP_K - hits_BK.shape[1])).float()}

    def fitted(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int) -> FittedSASRec:
        """The trained model."""
        catalogue = state["catalogue"]
        module = CausalTransformer(_sizes(self, len(catalogue)))
        module.load_state_dict(dict(weights))
        return FittedSASRec(catalogue=catalogue, module=module.eval(), rounds=rounds)

    @staticmethod
    def load(files: Mapping[str, bytes]) -> FittedSASRec:
        """What FittedSASRec.save wrote. CorruptError when a file is missing."""
        about = json.loads(file_of(files, "model.json"))
        module = CausalTransformer(Sizes(**about["sizes"]))
        module.load_state_dict(safetensors.load(file_of(files, "weights.safetensors")))
        return FittedSASRec(catalogue=Catalogue.load(files), module=module.eval(), rounds=about["rounds"])


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Shape of the network."""

    num_items: int
    """products"""
    dim: int
    """width"""
    num_layers: int
    """blocks"""
    num_heads: int
    """attention heads"""
    max_length: int
    """places"""
    dropout: float
    """share dropped in training"""


def _sizes(candidate: SASRec, num_items: int) -> Sizes:
    return Sizes(
        num_items=num_items, dim=candidate.dim, num_layers=candidate.num_layers, num_heads=candidate.num_heads,
        max_length=candidate.max_length, dropout=candidate.dropout,
    )  # fmt: skip


def sequences(bought: Histories, num_items: int, max_length: int) -> dict[str, np.ndarray]:
    """`items`, `gaps` (N, L) int32 and uint8, `length` (N,) int32 of the newest entries; L at most max_length."""
    gaps = np.zeros(len(bought.codes))
    gaps[1:] = bought.days_before[:-1] - bought.days_before[1:]
    gaps[bought.offsets[:-1][bought.lengths > 0]] = 0.0
    lengths = np.minimum(bought.lengths, max_length).astype(np.int32)
    return {
        "items": _padded(bought.offsets, bought.codes, max_length, num_items),
        "gaps": _padded(bought.offsets, gap_buckets(gaps), max_length, 0).astype(np.uint8),
        "length": lengths,
    }


def _targets(catalogue: Catalogue, column: pa.ChunkedArray) -> np.ndarray:
    offsets, codes, _ = catalogue.codes(column)
    return _padded(offsets, codes, MAX_TARGETS, -1, newest=False)


def _padded(offsets: np.ndarray, values: np.ndarray, width: int, filler: int, newest: bool = True) -> np.ndarray:
    """(N, W) int32: the newest (or first) values of each row, then filler; W is the longest row's, `width` at most."""
    lengths = np.diff(offsets)
    width = min(width, int(lengths.max(initial=0)))
    kept = np.minimum(lengths, width)
    starts = offsets[1:] - kept if newest else offsets[:-1]
    places = np.arange(width)[None, :]
    inside = places < kept[:, None]
    result = np.full((len(lengths), width), filler, np.int32)
    result[inside] = values[(starts[:, None] + places)[inside]]
    return result


class CausalTransformer(nn.Module):
    """Embeddings of items, places and gaps; causal blocks; scores by the same item embeddings."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes, self.labels_per_row = sizes, 1.0
        self.item = nn.Embedding(sizes.num_items + 1, sizes.dim, padding_idx=sizes.num_items)
        self.place = nn.Embedding(sizes.max_length, sizes.dim)
        self.gap = nn.Embedding(NUM_GAP_BUCKETS, sizes.dim)
        self.blocks = nn.ModuleList(Block(sizes.dim, sizes.num_heads, sizes.dropout) for _ in range(sizes.num_layers))
        self.norm = nn.LayerNorm(sizes.dim)
        self.bias_I = nn.Parameter(torch.zeros(sizes.num_items))
        for table in (self.item, self.place, self.gap):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.zeros_(self.item.weight[sizes.num_items])

    def forward(self, items_BL: torch.Tensor, gaps_BL: torch.Tensor) -> torch.Tensor:
        """(B, L, D): what is known after each entry."""
        places_L = torch.arange(items_BL.shape[1], device=items_BL.device)
        x_BLD = self.item(items_BL) * self.sizes.dim**0.5 + self.place(places_L) + self.gap(gaps_BL)
        x_BLD = F.dropout(x_BLD, self.sizes.dropout, self.training)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, D) -> (…, I)."""
        return hidden @ self.item.weight[:-1].T + self.bias_I

    def next_scores(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, I) logits of what follows the last entry; of no use for rows without entries."""
        hidden_BLD = self(batch["items"], batch["gaps"])
        last_B = (batch["length"] - 1).clamp(min=0)
        return self.logits(hidden_BLD[torch.arange(len(last_B), device=last_B.device), last_B])

    def target_loss(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) mean cross-entropy of the targets; 0 for rows without any."""
        targets_BT = batch["targets"]
        real_BT = (targets_BT >= 0).float()
        log_share_BI = F.log_softmax(self.next_scores(batch).float(), dim=1)
        losses_BT = -log_share_BI.gather(1, targets_BT.clamp(min=0)) * real_BT
        return losses_BT.sum(1) / real_BT.sum(1).clamp(min=1)

    def sequence_loss(
        self, batch: Mapping[str, torch.Tensor], full_softmax_items: int, num_sampled: int
    ) -> torch.Tensor:
        """(B,) sum of the cross-entropies of every entry after the visit before its own, divided by labels_per_row.

        What else is in the same visit tells nothing about the next one, so it predicts nothing.
        """
        items_BL = batch["items"]
        hidden_BLD = self(items_BL, batch["gaps"])
        places_L = torch.arange(items_BL.shape[1], device=items_BL.device)
        starts_BL = torch.where(batch["gaps"] > 0, places_L, 0).cummax(dim=1).values  # of each entry's visit
        known_BL = (places_L < batch["length"][:, None]) & (starts_BL > 0)
        rows_P, places_P = known_BL.nonzero(as_tuple=True)
        labels_P = items_BL[rows_P, places_P]
        hidden_PD = hidden_BLD[rows_P, starts_BL[rows_P, places_P] - 1]
        if self.sizes.num_items <= full_softmax_items:
            losses_P = F.cross_entropy(self.logits(hidden_PD).float(), labels_P, reduction="none")
        else:
            losses_P = self._sampled_loss(hidden_PD, labels_P, num_sampled)
        total_B = torch.zeros(len(items_BL), device=losses_P.device).index_add(0, rows_P, losses_P)
        return total_B / self.labels_per_row

    def _sampled_loss(self, hidden_PD: torch.Tensor, labels_P: torch.Tensor, num_sampled: int) -> torch.Tensor:
        """(P,) cross-entropy against products drawn evenly, each standing for num_items / num_sampled of them."""
        num_items = self.sizes.num_items
        drawn_S = torch.randint(num_items, (num_sampled,), device=labels_P.device)
        others_PS = hidden_PD @ self.item(drawn_S).T + self.bias_I[drawn_S] + float(np.log(num_items / num_sampled))
        others_PS = others_PS.masked_fill(drawn_S == labels_P[:, None], -torch.inf)
        own_P = (hidden_PD * self.item(labels_P)).sum(1) + self.bias_I[labels_P]
        return torch.logsumexp(torch.cat([own_P[:, None], others_PS], 1).float(), 1) - own_P.float()


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedSASRec(ranking.Ranked):
    """The trained Transformer."""

    catalogue: Catalogue
    """the products"""
    module: CausalTransformer
    """in evaluation mode, on the CPU, fp32"""
    rounds: int | None
    """epochs"""

    @torch.inference_mode()
    def scores(self, examples: pa.Table) -> np.ndarray:
        """(B, I) float32 logits; popularity for customers without history."""
        bought = histories.encode(examples, self.catalogue).distinct()
        arrays = sequences(bought, len(self.catalogue), self.module.sizes.max_length)
        known = arrays["length"] > 0
        result = np.tile(self.catalogue.popularity, (examples.num_rows, 1))
        if known.any():
            batch = {name: torch.from_numpy(values[known].astype(np.int64)) for name, values in arrays.items()}
            result[known] = self.module.next_scores(batch).numpy()
        return result

    def save(self) -> dict[str, bytes]:
        """The catalogue's files, model.json, weights.safetensors."""
        weights = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        about = {"sizes": asdict(self.module.sizes), "rounds": self.rounds}
        own = {"model.json": to_json(about), "weights.safetensors": safetensors.save(weights)}
        return {**self.catalogue.save(), **own}
