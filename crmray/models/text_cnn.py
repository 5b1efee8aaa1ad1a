"""A convolutional network over token embeddings (Kim 2014): several widths, the maximum over time, dropout, one layer.

The embeddings are learned with a tokenizer fitted on the training texts; or they are the hidden states of a BERT,
frozen (computed once a text), or fine-tuned with the rest. A fine-tuned BERT is part of the bundle; a frozen one is
not, and is read by its name wherever texts are put into classes.

Shape suffixes: B rows, T tokens (right-padded), D width of an embedding, H filters of one width, K classes, N rows of a
table, E tokens of a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from crmray.models import text_encoder, text_tokens
from crmray.models.events import padded
from crmray.models.labels import CLASS_SCORE, LABEL
from crmray.models.network import FittedNetwork, Training
from crmray.models.tabular import check_choice, check_positive
from crmray.models.text_classes import learnable, needs_text, texts_of

UNLEARNED = -1
"""code of a class that is not learned: its rows weigh nothing"""
PREDICT_TOKENS = 16_384
MAX_LR_FINE_TUNED = 3e-4
FEW_ROWS = 8_000


@dataclass(frozen=True, kw_only=True)
class TextCNN(Training):
    """Hyper-parameters; `crmray.train` fits it through the DeepSpeed engine."""

    NAME: ClassVar[str] = "text_cnn"
    KIND: ClassVar[str] = "torch"
    ARCHITECTURE: ClassVar[str] = "convolutional"
    GRID: ClassVar[dict[str, tuple]] = {"dropout": (0.3, 0.5), "lr": (1e-3, 2e-3)}

    encoder: str = ""
    """BERT whose hidden states are the embeddings: hub id or local folder; empty: embeddings learned from the texts."""
    fine_tune: bool = False
    """Train the encoder too, which wants a small lr."""
    vocabulary: int = 8_000
    """Entries of the tokenizer that is fitted on the texts, at most."""
    width: int = 128
    """Of a learned embedding; a BERT's hidden states are projected to it."""
    widths: tuple[int, ...] = (2, 3, 4, 5)
    """Tokens that the filters look at."""
    filters: int = 100
    """Of each width."""
    max_tokens: int = 200
    """Of a text that are read."""
    dropout: float = 0.5
    """Share of the filters' maxima dropped in training, 0..1; of the embeddings half as many."""
    batch_size: int = 128
    """Rows per optimizer step, over all workers."""
    max_epochs: int = 8
    """Epochs at most."""
    patience: int = 3
    """Epochs without improvement on validation before training ends."""
    class_weight: Literal["none", "balanced"] = "none"
    """`balanced` gives all classes the same total weight; the probabilities are corrected for it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has no tuples
        check_positive(vocabulary=self.vocabulary, width=self.width, filters=self.filters, max_tokens=self.max_tokens)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"got widths={self.widths}, expected one number of tokens above 0 or more")
        if self.fine_tune and not self.encoder:
            raise ValueError("got fine_tune without an encoder, expected encoder to name a BERT")
        if self.fine_tune and self.lr > MAX_LR_FINE_TUNED:
            raise ValueError(
                f"got lr={self.lr:g} with fine_tune, expected at most {MAX_LR_FINE_TUNED:g}: larger steps undo what the"
                " encoder knows"
            )
        check_choice("class_weight", self.class_weight, ("none", "balanced"))
        super().__post_init__()

    @classmethod
    def for_rows(cls, num_rows: int) -> dict[str, Any]:
        """Defaults that depend on the number of training rows: few rows need smaller batches and more epochs."""
        return {"batch_size": 32, "max_epochs": 20, "patience": 5} if num_rows < FEW_ROWS else {}

    applies = staticmethod(needs_text)

    # -- what the training loop asks for ---------------------------------------------------------------------------

    def prepare(self, train: pa.Table) -> dict[str, Any]:
        """Classes, their weights and the tokenizer, learned on training rows, as JSON."""
        rows, classes, code = learnable(train)
        counts = np.bincount(code, minlength=len(classes))
        weights = len(code) / (len(classes) * counts) if self.class_weight == "balanced" else np.ones(len(classes))
        state: dict[str, Any] = {"classes": classes, "class_weights": weights.tolist()}
        if not self.encoder:
            return {**state, "tokenizer": text_tokens.fit(texts_of(rows), vocabulary=self.vocabulary)}
        encoder = text_encoder.load(self.encoder)
        state |= {"encoder_width": encoder.width}
        if self.fine_tune:
            state |= {"tokenizer": encoder.tokenizer.backend_tokenizer.to_str()}
            state |= {"config": json.loads(encoder.model.config.to_json_string(use_diff=False))}
        return state

    def encode(self, state: Mapping[str, Any], examples: pa.Table) -> dict[str, np.ndarray]:
        """Arrays of the rows: offsets (N + 1,), tokens (E,) or states (E, D) float16, label (N,).

        Row i owns the tokens offsets[i]:offsets[i + 1].
        """
        texts = texts_of(examples)
        if "tokenizer" in state:
            rows = text_tokens.ids(state["tokenizer"], texts, self.max_tokens, special=self.fine_tune)
            counts = np.array([len(row) for row in rows], np.int64)
            arrays = {"tokens": np.concatenate([np.asarray(row, np.int64) for row in rows] or [np.zeros(0, np.int64)])}
        else:
            states = text_encoder.load(self.encoder).states(texts, self.max_tokens)
            counts = np.array([len(states_TD) for states_TD in states], np.int64)
            empty = np.zeros((0, state["encoder_width"]), np.float16)
            arrays = {"states": np.concatenate([empty, *states])}
        arrays["offsets"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if LABEL in examples.column_names and examples[LABEL].null_count == 0:
            code = pc.index_in(examples[LABEL], value_set=pa.array(state["classes"])).fill_null(UNLEARNED)
            arrays["label"] = code.to_numpy().astype(np.int64)
        return arrays

    def lengths(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N,) tokens per row."""
        return np.diff(arrays["offsets"])

    def module(self, state: Mapping[str, Any]) -> TextCNNModule:
        """A fresh module of the right sizes; a BERT that is to be fine-tuned starts from its published weights."""
        return self._module(state, pretrained=True)

    def _module(self, state: Mapping[str, Any], *, pretrained: bool) -> TextCNNModule:
        bert = None
        if self.fine_tune:
            bert = text_encoder.published(self.encoder) if pretrained else text_encoder.empty(state["config"])
        return TextCNNModule(
            classes=state["classes"],
            vocabulary=0 if self.encoder else text_tokens.size(state["tokenizer"]),
            encoder_width=state.get("encoder_width", 0),
            bert=bert,
            width=self.width,
            widths=self.widths,
            filters=self.filters,
            dropout=self.dropout,
            class_weights=state["class_weights"],
        )

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows as tensors, right-padded to the longest of them: tokens_BT or states_BTD, real_BT."""
        _, real_BT, place = padded(arrays["offsets"], rows)
        out = {"real_BT": torch.from_numpy(real_BT)}
        if "tokens" in arrays:
            tokens_BT = np.full(real_BT.shape, text_tokens.PADDING)
            tokens_BT[real_BT] = arrays["tokens"][place]
            out["tokens_BT"] = torch.from_numpy(tokens_BT)
        else:
            states_BTD = np.zeros((*real_BT.shape, arrays["states"].shape[1]), np.float32)
            states_BTD[real_BT] = arrays["states"][place]
            out["states_BTD"] = torch.from_numpy(states_BTD)
        if "label" in arrays:
            out["label_B"] = torch.from_numpy(arrays["label"][rows])
        return out

    def loss(self, module: TextCNNModule, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B,) cross-entropy times the class's weight; 0 for a class that is not learned."""
        return nn.functional.cross_entropy(
            module(batch).float(), batch["label_B"], weight=module.class_weights.float(), ignore_index=UNLEARNED,
            reduction="none",
        )  # fmt: skip

    def outputs(self, module: TextCNNModule, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{"p:<class>": (B,)} for each class, corrected for the class weights."""
        probability_BK = torch.softmax(module(batch).float() - module.class_weights.float().log(), dim=1)
        return {f"{CLASS_SCORE}{name}": probability_BK[:, k] for k, name in enumerate(module.classes)}

    def fitted(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], rounds: int) -> TextCNNModel:
        """The model with trained weights."""
        module = self._module(state, pretrained=False)
        module.load_state_dict(dict(weights))
        return TextCNNModel(candidate=self, state=dict(state), module=module.eval(), rounds=rounds)


class TextCNNModule(nn.Module):
    """Embeddings -> convolutions of several widths -> maximum over time -> one logit a class.

    Every window that holds a real token counts, and no other; what lies outside the text is zero. So padding is
    invisible, and a text shorter than a filter is read too.
    """

    def __init__(
        self, *, classes: list[str], vocabulary: int, encoder_width: int, bert: nn.Module | None, width: int,
        widths: tuple[int, ...], filters: int, dropout: float, class_weights: list[float],
    ):  # fmt: skip
        super().__init__()
        self.classes, self.widths, self.bert = list(classes), widths, bert
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=text_tokens.PADDING) if vocabulary else None
        self.project = (
            nn.Sequential(nn.LayerNorm(encoder_width), nn.Linear(encoder_width, width)) if encoder_width else None
        )
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, w, padding=w - 1) for w in widths)
        self.drop_embedding, self.drop = nn.Dropout(dropout / 2), nn.Dropout(dropout)
        self.head = nn.Linear(filters * len(widths), len(classes))
        self.class_weights: torch.Tensor
        self.register_buffer("class_weights", torch.tensor(class_weights))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, K) logits."""
        real_BT = batch["real_BT"]
        embedded_BTD = self.drop_embedding(self._embedded(batch)) * real_BT.unsqueeze(2)
        embedded_BDT = embedded_BTD.transpose(1, 2)
        maxima = []
        for width, convolution in zip(self.widths, self.convolutions, strict=True):
            found_BHT = torch.relu(convolution(embedded_BDT))
            some_BT = nn.functional.pad(real_BT, (0, width - 1))  # window t ends at token t
            # relu leaves nothing below 0, so a window without a token loses to any other
            maxima.append((found_BHT * some_BT.unsqueeze(1)).amax(dim=2))
        return self.head(self.drop(torch.cat(maxima, dim=1)))

    def _embedded(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, T, D)."""
        if self.embedding is not None:
            return self.embedding(batch["tokens_BT"])
        assert self.project is not None
        if self.bert is None:
            return self.project(batch["states_BTD"])
        mask_BT = batch["real_BT"].long()
        return self.project(self.bert(input_ids=batch["tokens_BT"], attention_mask=mask_BT).last_hidden_state)


@dataclass(frozen=True, kw_only=True)
class TextCNNModel(FittedNetwork):
    """A fitted network, on the CPU."""

    def predict(self, examples: pa.Table) -> dict[str, np.ndarray]:
        """`p:<class>` float64 (N,) each."""
        arrays = self.encoded(examples)
        lengths = self.candidate.lengths(arrays)
        order = np.argsort(lengths, kind="stable")  # rows of one length need no padding
        return self.answered(arrays, _runs(order, lengths), [f"{CLASS_SCORE}{name}" for name in self.module.classes])


def _runs(order: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Rows in order of length, cut so that each run has at most PREDICT_TOKENS tokens, or one row."""
    runs, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > PREDICT_TOKENS:
            runs.append(order[start:end])
            start = end
    return runs
