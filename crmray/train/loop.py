"""The training loop: epochs of a torch candidate through the DeepSpeed engine, with early stopping on validation.

No Ray in here: the same loop runs in a Tune trial's own process, in the workers of a TorchTrainer, in a test. What
leaves it goes through `report`, called by every rank once an epoch.

A torch candidate may give, beside the contract's methods:
    outputs(module, batch) -> dict[str, Tensor (B, …)]   predictions as Fitted.predict gives them; early stopping then
                                                         follows the task's METRIC, without it the validation loss
    training_rows(examples) -> examples                  rows to learn from, where some repeat what others hold
    lengths(arrays) -> (N,) int array                    sequence lengths; rows of similar length then share a batch
    schedule: "constant" | "cosine", warmup_share: float fields of the learning rate's course over max_epochs
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from crmray import log
from crmray.errors import NonFiniteError, NotEnoughDataError, TrainingError
from crmray.train import batches
from crmray.train import engine as engines
from crmray.train.engine import EngineSettings

Report = Callable[[dict[str, Any], Callable[[str | Path], None]], None]
"""`report(figures, save)`: figures of the epoch; `save(folder)` writes a checkpoint, called by all ranks or none"""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Encoded rows (what the candidate's `encode` gave) and how predictions on validation are scored."""

    train: Mapping[str, np.ndarray]
    """arrays of the training rows"""
    num_train: int
    """number of training rows"""
    validation: Mapping[str, np.ndarray] | None = None
    """arrays of the validation rows; None: a fixed number of epochs"""
    num_validation: int = 0
    """number of validation rows"""
    score: Callable[[dict[str, np.ndarray]], Mapping[str, float]] | None = None
    """figures of predictions on the validation rows, `metric` among them"""
    metric: str = "loss"
    """the figure to stop on"""
    mode: Literal["max", "min"] = "min"
    """whether more or less of `metric` is better"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training came to."""

    weights: dict[str, torch.Tensor]
    """fp32 CPU weights of the best epoch (of the last one when the number of epochs was fixed)"""
    rounds: int
    """that epoch, counted from 1"""
    figures: dict[str, Any]
    """figures of that epoch"""
    history: list[dict[str, Any]]
    """figures of all epochs"""

    def curve(self, metric: str) -> dict[str, list[float]]:
        """train_loss, and where there was validation validation_loss and the task's metric, of each epoch.

        The loss of training is the mean over the epoch, dropout included; that of validation is taken after it.
        """
        names = [name for name in ("train_loss", "validation_loss", metric) if name in self.figures]
        return {name: [figures[name] for figures in self.history] for name in names}


@dataclass
class _Progress:
    """What a checkpoint carries beside the engine's state."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


class _LossModule(nn.Module):
    """The candidate's loss as a module's forward, so that all arithmetic happens inside the engine's forward."""

    def __init__(self, module: nn.Module, candidate: Any):
        super().__init__()
        self.module = module
        self.candidate = candidate

    def forward(self, batch: dict[str, torch.Tensor], with_outputs: bool = False) -> Any:
        """(B,) losses, and the outputs where they are asked for."""
        losses_B = self.candidate.loss(self.module, batch).float()
        return (losses_B, self.candidate.outputs(self.module, batch)) if with_outputs else losses_B


def train(
    candidate: Any,
    state: Any,
    data: Data,
    *,
    seed: int,
    device: str = "cpu",
    rounds: int | None = None,
    settings: EngineSettings | None = None,
    report: Report | None = None,
    resume: str | Path | None = None,
) -> Outcome:
    """Train on the process group that is there; every rank calls it with the same arguments.

    rounds: a fixed number of epochs (the refit); without it up to `candidate.max_epochs`, ended when validation has not
    improved for `candidate.patience` epochs. resume: folder of a checkpoint that `report`'s `save` wrote.
    NonFiniteError, naming epoch and step, before an optimizer step with a loss or gradient that is not finite.
    """
    if data.num_train == 0:
        raise NotEnoughDataError("got 0 training rows, expected at least 1")
    run = Run.start(candidate, state, data, seed=seed, device=device, settings=settings)
    progress = _Progress()
    if resume is not None:
        client = engines.load(run.engine, resume)
        progress = _Progress(history=client["history"], best=client["best"], weights=client["weights"])
        log.event("train.resumed", epoch=len(progress.history))
    for epoch in range(len(progress.history) + 1, (rounds or candidate.max_epochs) + 1):
        if rounds is None and data.validation is not None and _stale(progress, candidate.patience):
            break
        figures = run.epoch(epoch)
        progress.history.append(figures)
        fixed = rounds is not None or data.validation is None
        if fixed or _better(figures, progress.best, run.metric, run.mode):
            progress.best = figures
            if not fixed or epoch == (rounds or candidate.max_epochs):
                progress.weights = engines.weights(run.engine, prefix="module.")
        if dist.get_rank() == 0:
            log.event("train.epoch", candidate=candidate.NAME, **figures)
        if report is not None:
            client = {"history": progress.history, "best": progress.best, "weights": progress.weights}
            report(figures, functools.partial(_save, run.engine, client))
    return Outcome(
        weights=progress.weights, rounds=progress.best["epoch"], figures=progress.best, history=progress.history
    )


def _array(value: torch.Tensor) -> np.ndarray:
    """On the CPU; numpy has no bfloat16."""
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()


def _save(engine: Any, client: Mapping[str, Any], folder: str | Path) -> None:
    engines.save(engine, folder, client)


def _better(figures: Mapping[str, Any], best: Mapping[str, Any], metric: str, mode: str) -> bool:
    value = figures[metric]
    if not math.isfinite(value):
        raise TrainingError(f"epoch {figures['epoch']}: got validation {metric} {value}, expected a finite number")
    return not best or (value > best[metric] if mode == "max" else value < best[metric])


def _stale(progress: _Progress, patience: int) -> bool:
    return bool(progress.best) and len(progress.history) - progress.best["epoch"] >= patience


def learning_rate(candidate: Any, step: int, num_steps: int) -> float:
    """Rate of step `step` (from 0) of `num_steps`: linear warm-up, then constant or half a cosine down to 5 %."""
    warmup = round(getattr(candidate, "warmup_share", 0.0) * num_steps)
    if step < warmup:
        return candidate.lr * (step + 1) / warmup
    if getattr(candidate, "schedule", "constant") == "constant":
        return candidate.lr
    share = (step - warmup) / max(1, num_steps - warmup)
    return candidate.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


class Run:
    """One training on one rank: what its epochs share. `train` drives it; a benchmark may run epochs one by one."""

    def __init__(self, *, candidate: Any, data: Data, engine: Any, seed: int, device: str, settings: EngineSettings):
        self.candidate, self.data, self.engine, self.seed, self.device = candidate, data, engine, seed, device
        self.shape = {
            "batch_size": candidate.batch_size,
            "rank": dist.get_rank(),
            "num_workers": dist.get_world_size(),
        }
        self.accumulation = settings.accumulation
        scored = data.score is not None and hasattr(candidate, "outputs")
        self.scored = scored and data.validation is not None
        self.metric, self.mode = (data.metric, data.mode) if self.scored else ("validation_loss", "min")
        self.lengths = candidate.lengths(data.train) if hasattr(candidate, "lengths") else None
        self.steps = batches.num_steps(data.num_train, candidate.batch_size)
        self.where = (0, 0)
        self.step_loss = torch.zeros(())
        engines.before_step(engine, self._refuse_non_finite)

    @classmethod
    def start(
        cls, candidate: Any, state: Any, data: Data, *, seed: int, device: str, settings: EngineSettings | None = None
    ) -> Run:
        """A fresh module in a fresh engine."""
        settings = settings or EngineSettings()
        torch.manual_seed(seed)
        engine = engines.start(
            _LossModule(candidate.module(state), candidate),
            settings,
            batch_size=candidate.batch_size,
            lr=candidate.lr,
            weight_decay=candidate.weight_decay,
            device=device,
        )
        return cls(candidate=candidate, data=data, engine=engine, seed=seed, device=device, settings=settings)

    def _refuse_non_finite(self, gradients: list[torch.Tensor]) -> None:
        """Runs between the reduction of the gradients and the optimizer."""
        norm = torch.nn.utils.get_total_norm(gradients).float()
        if bool(torch.isfinite(norm + self.step_loss.to(norm.device))):
            return
        epoch, step = self.where
        raise NonFiniteError(
            f"{self.candidate.NAME}: epoch {epoch}, step {step} of {self.steps}: got loss {self.step_loss.item():g} "
            f"and gradient norm {norm.item():g}, expected finite numbers; lower lr ({self.candidate.lr:g}) or look for "
            "extreme values in the features"
        )

    def _tensors(
        self, arrays: Mapping[str, np.ndarray], micro: batches.MicroBatch
    ) -> tuple[batches.MicroBatch, dict[str, torch.Tensor], torch.Tensor]:
        """The batch and its row weights on the device."""
        batch = self.candidate.batch(arrays, micro.rows)
        weights = torch.from_numpy(micro.weights)
        if self.device == "cpu":
            return micro, batch, weights
        device = torch.device("cuda", torch.cuda.current_device())
        move = {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}
        return micro, move, weights.pin_memory().to(device, non_blocking=True)

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch and look at validation."""
        started = time.perf_counter()
        # Dropout draws anew each epoch and differs between ranks; a resumed run draws what an unbroken one had drawn.
        torch.manual_seed(self.seed * 1_000_003 + epoch * 1_009 + self.shape["rank"])
        loss, wait_s = self._train_epoch(epoch)
        seconds = time.perf_counter() - started
        figures = {
            "epoch": epoch,
            "train_loss": loss,
            "train_s": round(seconds, 4),
            "rows_per_s": round(self.data.num_train / seconds, 1),
            "data_wait_share": round(wait_s / seconds, 4),
        }
        if self.data.validation is not None:
            figures |= self._validate()
        return figures

    def _train_epoch(self, epoch: int) -> tuple[float, float]:
        """Mean loss over all rows of all workers, and the seconds this rank waited for data."""
        engine, world = self.engine, self.shape["num_workers"]
        engine.train()
        rows = batches.order(
            self.data.num_train,
            batch_size=self.candidate.batch_size,
            seed=self.seed,
            epoch=epoch,
            lengths=self.lengths,
        )
        todo = batches.micro_batches(rows, **self.shape, accumulation=self.accumulation)
        made = batches.prefetch(
            todo, lambda m: self._tensors(self.data.train, m), ahead=0 if self.device == "cpu" else 2
        )
        total, wait_s, step = torch.zeros((), dtype=torch.float64), 0.0, 0
        self.step_loss = torch.zeros(())
        asked = time.perf_counter()
        for micro, batch, weights_B in made:
            wait_s += time.perf_counter() - asked
            done = (epoch - 1) * self.steps + step
            engines.set_lr(engine, learning_rate(self.candidate, done, self.candidate.max_epochs * self.steps))
            loss_sum = (engine(batch) * weights_B).sum()
            self.where = (epoch, step + 1)
            self.step_loss = self.step_loss.to(loss_sum.device) + loss_sum.detach()
            # The engine averages over ranks and micro-batches; we want the mean over the rows of the whole step.
            engine.backward(loss_sum * (world * self.accumulation / micro.total_weight))
            engine.step()
            if micro.last:
                total, step = total.to(loss_sum.device) + self.step_loss, step + 1
                self.step_loss = torch.zeros_like(self.step_loss)
            asked = time.perf_counter()
        if world > 1:
            dist.all_reduce(total)
        return float(total) / self.data.num_train, wait_s

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Validation loss over all workers, and the task's figures where the candidate gives outputs."""
        assert self.data.validation is not None
        self.engine.eval()
        total, parts = torch.zeros((), dtype=torch.float64), []
        rows = np.arange(self.data.num_validation)
        for micro in batches.micro_batches(rows, **self.shape):
            _, batch, weights_B = self._tensors(self.data.validation, micro)
            result = self.engine(batch, with_outputs=self.scored)
            losses_B, outputs = result if self.scored else (result, {})
            total = total.to(losses_B.device) + (losses_B * weights_B).sum().double()
            real = micro.weights > 0
            if self.scored:
                kept = {name: _array(value)[real] for name, value in outputs.items()}
                parts.append((micro.rows[real], kept))
        if self.shape["num_workers"] > 1:
            dist.all_reduce(total)
        figures = {"validation_loss": float(total) / max(1, self.data.num_validation)}
        if self.scored:
            figures |= self._score(parts)
        return figures

    def _score(self, parts: list[tuple[np.ndarray, dict[str, np.ndarray]]]) -> dict[str, float]:
        """Gather the predictions on rank 0, put them in row order, score them there, tell everyone."""
        world = self.shape["num_workers"]
        figures: list[Any] = [None]
        gathered: list[Any] = [parts]
        if world > 1:
            gathered = [None] * world
            dist.gather_object(parts, gathered if dist.get_rank() == 0 else None, dst=0)
        if dist.get_rank() == 0:
            pieces = [piece for rank_parts in gathered for piece in rank_parts]
            back = np.argsort(np.concatenate([rows for rows, _ in pieces]))
            names = pieces[0][1]
            predictions = {name: np.concatenate([kept[name] for _, kept in pieces])[back] for name in names}
            assert self.data.score is not None
            figures = [{name: float(value) for name, value in self.data.score(predictions).items()}]
        if world > 1:
            dist.broadcast_object_list(figures, src=0)
        assert figures[0] is not None
        return figures[0]
