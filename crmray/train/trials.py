"""The live table of trials, and the watch over a search that cannot start."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.tune import Callback

from crmray import cluster, log
from crmray.errors import WatchdogError

FIRST_WORD_S = 30.0
"""starting a process and importing torch takes seconds; a wait beyond this is told"""
GIVE_UP_S = 1800.0
"""a search in which nothing has run for so long is ended"""


class TrialTable(Callback):
    """Tells each trial's end and how the search stands; says what it waits for while nothing runs."""

    def __init__(self, *, task: str, metric: str, mode: str, total: int):
        self.task, self.metric, self.mode, self.total = task, metric, mode, total
        self.done, self.best = 0, ""
        self.best_value: float | None = None
        self.idle_since, self.next_word_s = time.monotonic(), FIRST_WORD_S

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After a restore the clock starts anew."""
        self.__dict__.update(state)
        self.idle_since, self.next_word_s = time.monotonic(), FIRST_WORD_S

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look whether anything runs."""
        now = time.monotonic()
        if any(trial.status == "RUNNING" for trial in trials) or all(trial.is_finished() for trial in trials):
            self.idle_since, self.next_word_s = now, FIRST_WORD_S
            return
        waited_s = now - self.idle_since
        if waited_s > GIVE_UP_S:
            raise WatchdogError(f"search: waited {waited_s:.0f} s for a trial to start; {_free()}")
        if waited_s > self.next_word_s:
            self.next_word_s *= 2
            why = {"waits_for": "a trial to start", "because": _free()}
            log.warn("search.waiting", task=self.task, seconds=round(waited_s), **why)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell it."""
        result = trial.last_result or {}
        value, why = result.get(self.metric), result.get("failed", "")
        state = "failed" if why else "finished" if result.get("finished") else "stopped"
        self._tell(trial, trials, state, value, why, result.get("seconds"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tell it, when it will not be tried again."""
        if trial.is_finished():
            self._tell(trial, trials, "crashed", None, "its process died or raised; see the trial's error.txt", None)

    def _tell(
        self, trial: Any, trials: list[Any], state: str, value: float | None, why: str, seconds: float | None
    ) -> None:
        self.done += 1
        label = (trial.last_result or {}).get("label") or " ".join(f"{k}={v}" for k, v in trial.config.items())
        fields: dict[str, Any] = {"trial": label, "state": state}
        if state in ("finished", "stopped") and value is not None:
            fields[self.metric] = round(float(value), 5)
            better = self.best_value is None or (value > self.best_value) == (self.mode == "max")
            if state == "finished" and better:
                self.best, self.best_value = label, float(value)
        if why:
            fields["why"] = why
        running = sum(other.status == "RUNNING" for other in trials)
        best = f"{self.best} ({self.best_value:.5g})" if self.best_value is not None else "none yet"
        log.event("trial", **fields, seconds=seconds, done=self.done, running=running, of=self.total, best=best)
        name = label.split(" ")[0]
        cluster.record("crmray_trials_total", 1, task=self.task, candidate=name, state=state)


def _free() -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    parts = [f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s" for kind in ("CPU", "GPU") if total.get(kind)]
    return ", ".join(parts) + " are free"
