"""What networks share: how they are trained, their files; those over feature columns also unequal classes and arrays.

Shape suffixes: B rows of a batch, N rows of a table, F numbers, A categories.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from crmray.models.focal import recovered
from crmray.models.preprocess import Tabular
from crmray.models.selection import Preprocessing
from crmray.models.tabular import check_choice, check_positive, file_of, to_json

FURTHEST = 10.0
"""scaled numbers are kept within it of 0: a value far beyond those of training must not decide alone"""
MAX_CODE_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hyper-parameters of a network's training, which crmray.train reads."""

    NAME: ClassVar[str]

    dropout: float = 0.3
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
    max_epochs: int = 12
    """Epochs at most."""
    patience: int = 4
    """Epochs without improvement on validation before training ends."""

    def __post_init__(self) -> None:
        check_positive(
            lr=self.lr, batch_size=self.batch_size, max_epochs=self.max_epochs, patience=self.patience
        )  # fmt: skip
        if not 0 <= self.dropout < 1 or not 0 <= self.warmup_share < 1 or self.weight_decay < 0:
            raise ValueError(
                f"got dropout={self.dropout}, warmup_share={self.warmup_share}, weight_decay={self.weight_decay}, "
                "expected shares within [0, 1) and a decay of 0 or more"
            )
        check_choice("schedule", self.schedule, ("constant", "cosine"))

    @classmethod
    def load(cls, files: Mapping[str, bytes]) -> Any:
        """The model that FittedNetwork.save wrote. CorruptError for a missing file."""
        about = json.loads(file_of(files, f"{cls.NAME}.json"))
        weights = load_tensors(file_of(files, "weights.safetensors"))
        candidate: Any = cls(**about["settings"])
        return candidate.fitted(about["state"], weights, about["rounds"])


@dataclass(frozen=True, kw_only=True)
class Network(Training, Preprocessing):
    """Hyper-parameters of a network over feature columns."""

    imbalance: Literal["none", "weights", "focal"] = "none"
    """Of yes and no: weights give both the same total, focal loss (Lin et al. 2017) gives easy rows less;
    probabilities are corrected for either. No SMOTE: it makes up single rows, where batches are streamed."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss."""

    def __post_init__(self) -> None:
        check_choice("imbalance", self.imbalance, ("none", "weights", "focal"))
        if self.focal_gamma < 0:
            raise ValueError(f"got focal_gamma={self.focal_gamma}, expected an exponent of 0 or more")
        Training.__post_init__(self)
        Preprocessing.__post_init__(self)

    def positive_weight(self, labels: np.ndarray) -> float:
        """Weight of a row with label 1; labels (N,) of 0 and 1."""
        return float((labels == 0).sum() / labels.sum()) if self.imbalance == "weights" else 1.0

    def yes_no_loss(
        self, logit_B: torch.Tensor, label_B: torch.Tensor, log_positive_weight: torch.Tensor
    ) -> torch.Tensor:
        """(B,) log loss: positives times the class weight, or times (1 - probability of the truth)^focal_gamma."""
        loss_B = nn.functional.binary_cross_entropy_with_logits(
            logit_B, label_B, reduction="none", pos_weight=log_positive_weight.exp()
        )
        if self.imbalance != "focal":
            return loss_B
        # exp(-loss) is the probability of the truth; clamped, since the slope of 0 to a power below 1 is infinite
        return (1.0 - torch.exp(-loss_B)).clamp(min=1e-6) ** self.focal_gamma * loss_B

    def probability(self, logit_B: torch.Tensor, log_positive_weight: torch.Tensor) -> torch.Tensor:
        """(B,) probability of yes, corrected for class weight or focal loss."""
        score_B = torch.sigmoid(logit_B - log_positive_weight)
        return recovered(score_B, self.focal_gamma).float() if self.imbalance == "focal" else score_B


def feature_arrays(tabular: Tabular | None, examples: pa.Table) -> dict[str, np.ndarray]:
    """numbers (N, F) float32 within FURTHEST of 0, and codes (N, A) int64; without features no columns."""
    if tabular is None:
        none = (examples.num_rows, 0)
        return {"numbers": np.zeros(none, np.float32), "codes": np.zeros(none, np.int64)}
    numbers_NF = np.clip(tabular.numbers(examples), -FURTHEST, FURTHEST).astype(np.float32)
    return {"numbers": numbers_NF, "codes": tabular.codes(examples)}


def feature_batch(
    arrays: Mapping[str, np.ndarray], rows: np.ndarray, labels: Sequence[str] = ("label",)
) -> dict[str, torch.Tensor]:
    """Rows (B,) of what `feature_arrays` gave as numbers_BF and codes_BA, and of those labels that there are as
    <label>_B."""
    names = {"numbers": "numbers_BF", "codes": "codes_BA", **{label: f"{label}_B" for label in labels}}
    return {tensor: torch.from_numpy(arrays[name][rows]) for name, tensor in names.items() if name in arrays}


class Codes(nn.ModuleList):
    """An embedding for each categorical column, the wider the more values it has."""

    def __init__(self, num_codes: Sequence[int]):
        widths = [min(MAX_CODE_WIDTH, 1 + round(size**0.5)) for size in num_codes]
        super().__init__(nn.Embedding(n, w) for n, w in zip(num_codes, widths, strict=True))
        self.widths = widths

    def embedded(self, codes_BA: torch.Tensor) -> list[torch.Tensor]:
        """(B, width) of each column."""
        return [table(codes_BA[:, a]) for a, table in enumerate(self)]


@dataclass(frozen=True, kw_only=True)
class FittedNetwork:
    """A trained network, on the CPU."""

    candidate: Any
    """Its hyper-parameters."""
    state: dict[str, Any]
    """What the candidate's `prepare` learned on training rows."""
    module: Any
    """Its weights."""
    rounds: int | None
    """Epochs that it was trained for."""

    def encoded(self, examples: pa.Table, labels: Sequence[str] = ("label",)) -> dict[str, np.ndarray]:
        """The candidate's arrays of the rows, without their labels."""
        known = [name for name in examples.column_names if name not in labels]
        return self.candidate.encode(self.state, examples.select(known))

    def batch(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows as tensors."""
        return self.candidate.batch(arrays, rows)

    def answered(
        self, arrays: Mapping[str, np.ndarray], runs: Sequence[np.ndarray], names: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """These of the candidate's outputs, float64 (N,) each; runs: the rows of each batch, N in all."""
        found = {name: np.empty(sum(map(len, runs))) for name in names}
        with torch.inference_mode():
            for rows in runs:
                said = self.candidate.outputs(self.module, self.batch(arrays, rows))
                for name, values in found.items():
                    values[rows] = said[name].numpy()
        return found

    def save(self) -> dict[str, bytes]:
        """Files of the model: weights as safetensors, in single precision as they were trained, the rest as JSON."""
        about = {"settings": asdict(self.candidate), "state": self.state, "rounds": self.rounds}
        weights = {
            name: (value.float() if value.dtype == torch.float64 else value).contiguous()
            for name, value in self.module.state_dict().items()
        }
        return {"weights.safetensors": save_tensors(weights), f"{self.candidate.NAME}.json": to_json(about)}


def runs_of(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows cut into runs of at most `size`, in their order."""
    return [order[start : start + size] for start in range(0, len(order), size)]
