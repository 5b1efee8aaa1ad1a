"""Torch fits over several workers: one TorchTrainer, in which the DeepSpeed engine runs the same loop as elsewhere.

Several fits share one worker group, since starting it costs more than training a small model. A run goes on after
kill -9 of a worker (from its last checkpoint), and of the driver or the node when the job is run again: finished fits
lie in the lake, and the Train run has a name of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from crmray import cluster, log
from crmray.errors import ClusterError, TrainingError, WatchdogError
from crmray.tasks.contract import Task
from crmray.train import loop
from crmray.train.points import OWN_FAULT, Fit, Result, curve

if TYPE_CHECKING:
    from crmray.train.search import Search

MAX_FAILURES = 3
"""times that a worker group is started again from the last checkpoint"""
CHECKPOINT_EVERY_S = 10.0
"""seconds of training that a crash may cost"""
START_TIMEOUT_S = 60
START_ATTEMPTS = 15
"""so many times START_TIMEOUT_S a run waits for its workers before it is given up"""
SETTLE_S = 10.0
"""so long the processes of the search may take to be gone"""
GIVE_UP_S = 1800.0
"""so long the workers' resources are waited for"""
COLLECTIVE_TIMEOUT_S = 600
"""a collective operation that takes longer has lost a worker"""
TRAIN_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller fetches one report per interval; 2 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_TIMEOUT_S),
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def train(
    shared: Search, fits: Sequence[tuple[Fit, pa.Table, pa.Table | None]], *, name: str,
    num_workers: int | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> None:  # fmt: skip
    """Fits (with their training rows, and validation rows for early stopping) one after the other over all workers."""
    gpu = shared.device == "cuda"
    num_workers = num_workers or _free_workers(gpu)
    cluster.preflight(num_workers, 1, 1 if gpu else 0)
    for key, value in TRAIN_ENV.items():
        os.environ.setdefault(key, value)
    if len([node for node in ray.nodes() if node["Alive"]]) == 1:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nothing to move to, and an actor less
    jobs = [_job(shared, *one) for one in fits]
    _wait_for_room(num_workers, gpu)
    folder = shared.results.lake.work_folder("train", shared.task.NAME)
    log.event("train", task=shared.task.NAME, fits=len(jobs), workers=num_workers, device=shared.device, folder=folder)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"shared": shared, "jobs": jobs, "checkpoint_every_s": checkpoint_every_s},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=gpu, resources_per_worker={"CPU": 1, "GPU": 1} if gpu else {"CPU": 1}
        ),
        run_config=RunConfig(
            name=f"{name}-{num_workers}",  # ZeRO's shards fit their number of workers only
            storage_path=folder,
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=START_ATTEMPTS),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _translated(error) from error
    for fit, *_ in fits:
        failed = shared.results.of(fit).failed
        if failed:
            raise TrainingError(f"{fit.point.label(shared.task)} on {fit.rows} rows: {failed}")


def encoded(task: Task, candidate: Any, state: Any, train: pa.Table, validation: pa.Table | None) -> loop.Data:
    """A torch candidate's rows as the loop takes them."""
    if hasattr(candidate, "training_rows"):
        train = candidate.training_rows(train)
    if validation is None:
        return loop.Data(train=candidate.encode(state, train), num_train=train.num_rows)
    return loop.Data(
        train=candidate.encode(state, train),
        num_train=train.num_rows,
        validation=candidate.encode(state, validation),
        num_validation=validation.num_rows,
        score=lambda predictions: task.score(validation, predictions),
        metric=task.METRIC,
        mode=task.MODE,
    )


def _job(shared: Search, fit: Fit, rows: pa.Table, validation: pa.Table | None) -> dict[str, Any]:
    """What the workers need of one fit; the encoded rows travel by the object store, once per node, without copies."""
    candidate: Any = fit.point.make(shared.task)
    state = candidate.prepare(rows)
    data = encoded(shared.task, candidate, state, rows, validation)
    return {"fit": fit, "state": state, "data": [ray.put(data)]}


def _worker(config: Mapping[str, Any]) -> None:
    """The fits on one worker, in order; those that are finished are passed over."""
    log.setup(json=True)
    shared: Search = config["shared"]
    checkpoint = ray.train.get_checkpoint()
    for job in config["jobs"]:
        fit: Fit = job["fit"]
        with tempfile.TemporaryDirectory() as folder:
            resume = None
            if checkpoint is not None:
                checkpoint.to_directory(folder)
                resume = folder if (Path(folder) / fit.key).exists() else None
            if not _agreed(shared.results.read(fit) is not None):
                _train_one(shared, job, resume, config["checkpoint_every_s"])


def _agreed(finished: bool) -> bool:
    """Rank 0's view: the others may look at the lake a moment later."""
    import torch.distributed as dist

    answer = [finished]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def _train_one(shared: Search, job: Mapping[str, Any], resume: str | None, checkpoint_every_s: float) -> None:
    import torch.distributed as dist

    fit, state = job["fit"], job["state"]
    candidate: Any = fit.point.make(shared.task)
    data: loop.Data = ray.get(job["data"][0])
    started = told = time.monotonic()
    rank = ray.train.get_context().get_world_rank()

    def report(figures: dict[str, Any], save: Any) -> None:
        nonlocal told
        if rank == 0:
            tags = {"task": shared.task.NAME, "candidate": fit.point.candidate}
            cluster.record("crmray_loss", figures["train_loss"], **tags, part="refit")
            cluster.record("crmray_examples_per_s", figures["rows_per_s"], **tags)
        due = [time.monotonic() - told >= checkpoint_every_s]
        dist.broadcast_object_list(due, src=0)
        if not due[0]:
            return
        with tempfile.TemporaryDirectory() as folder:
            save(folder)
            if rank == 0:
                (Path(folder) / fit.key).write_text("", encoding="utf-8")  # says whose checkpoint it is
            kept = Checkpoint.from_directory(folder)
            ray.train.report(
                {**figures, "candidate": fit.point.candidate}, checkpoint=kept,
                checkpoint_dir_name=f"{fit.key}-{figures['epoch']:05d}",
            )  # fmt: skip
        told = time.monotonic()

    try:
        outcome = loop.train(
            candidate, state, data, seed=shared.seed, device=shared.device, rounds=fit.rounds, settings=shared.engine,
            report=report, resume=resume,
        )  # fmt: skip
    except OWN_FAULT as error:  # would come again: the restarted group finds it told, and passes the fit over
        shared.results.write(Result(fit=fit, failed=f"{type(error).__name__}: {error}"), None)
        raise
    if rank == 0:
        seconds, history = round(time.monotonic() - started, 3), curve(outcome.curve(shared.task.METRIC))
        result = Result(fit=fit, rounds=outcome.rounds, seconds=seconds, history=history)
        shared.results.write(result, candidate.fitted(state, outcome.weights, outcome.rounds))
    dist.barrier()


def _free_workers(gpu: bool) -> int:
    """As many workers as there are free GPUs (or CPUs) once the processes of the search are gone, at least one.

    The training is the same for any number of them, so what others hold (endpoints, say) need not be waited for.
    """
    kind = "GPU" if gpu else "CPU"
    started = time.monotonic()
    while ray.available_resources().get(kind, 0) < cluster.resources().get(kind, 0):
        if time.monotonic() - started > SETTLE_S:
            break
        time.sleep(0.2)
    return max(1, int(ray.available_resources().get(kind, 0)))


def _wait_for_room(num_workers: int, gpu: bool) -> None:
    """Wait until the workers' resources are free, saying so; Train itself would wait without a word."""
    need = {"CPU": num_workers, "GPU": num_workers if gpu else 0}
    started, next_word_s = time.monotonic(), 10.0
    while True:
        free = ray.available_resources()
        short = {kind: count for kind, count in need.items() if free.get(kind, 0) + 1e-6 < count}
        if not short:
            return
        waited_s = time.monotonic() - started
        have = ", ".join(f"{free.get(kind, 0):g} of {count} {kind}s free" for kind, count in short.items())
        if waited_s > GIVE_UP_S:
            raise WatchdogError(f"train: waited {waited_s:.0f} s for {num_workers} workers: {have}")
        if waited_s > next_word_s:
            next_word_s *= 2
            log.warn("train.waiting", seconds=round(waited_s), workers=num_workers, because=have)
        time.sleep(0.2)


def _translated(error: TrainingFailedError) -> ClusterError:
    """With the last line of each worker's failure: no traceback for the user."""
    failures = getattr(error, "worker_failures", {})
    lines = [f"worker {rank}: {str(failure).strip().splitlines()[-1]}" for rank, failure in failures.items()]
    return ClusterError("training on the cluster failed; " + ("; ".join(lines) or str(error).strip().splitlines()[0]))
