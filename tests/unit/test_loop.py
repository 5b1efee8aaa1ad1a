"""The training loop and its batches, without Ray: one process, or two on gloo."""

import dataclasses
import multiprocessing
import os

import mini_task
import numpy as np
import pytest
import torch

from crmray.errors import ConfigError, NonFiniteError
from crmray.train import batches, engine, loop, points
from crmray.train.engine import EngineSettings

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def data(candidate, num_train=150, validation=True):
    train, other = mini_task.rows(num_train, 0), mini_task.rows(80, 1)
    state = candidate.prepare(train)
    if not validation:
        return state, loop.Data(train=candidate.encode(state, train), num_train=num_train)
    return state, loop.Data(
        train=candidate.encode(state, train), num_train=num_train, validation=candidate.encode(state, other),
        num_validation=80, score=lambda p: mini_task.score(other, p), metric="auc", mode="max",
    )  # fmt: skip


def train(candidate, *, settings=None, validation=True, **options):
    state, rows = data(candidate, validation=validation)
    with engine.single_process_group("cpu"):
        return loop.train(candidate, state, rows, seed=3, settings=settings, **options)


def train_on_rank(rank, world, folder, candidate, all_settings, queue):
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=world)
    state, rows = data(candidate)
    for settings in all_settings:
        outcome = loop.train(candidate, state, rows, seed=3, settings=settings)
        if rank == 0:
            queue.put(losses_of(outcome))
    torch.distributed.barrier()


def losses_of(outcome):
    return [(f["train_loss"], f["validation_loss"], f["auc"]) for f in outcome.history]


def test_an_epoch_deals_every_row_to_exactly_one_worker():
    rows = batches.order(103, batch_size=10, seed=1, epoch=2)
    assert sorted(rows) == list(range(103))
    assert list(batches.order(103, batch_size=10, seed=1, epoch=2)) == list(rows)
    assert list(batches.order(103, batch_size=10, seed=1, epoch=3)) != list(rows)
    shares = [list(batches.micro_batches(rows, batch_size=10, rank=r, num_workers=3, accumulation=2)) for r in range(3)]
    assert {len(share) for share in shares} == {11 * 2}  # steps x accumulation, the same for every worker
    seen = [row for share in shares for micro in share for row, w in zip(micro.rows, micro.weights, strict=True) if w]
    assert sorted(seen) == list(range(103))
    assert [micro.total_weight for micro in shares[0][-2:]] == [3.0, 3.0]
    assert all(len(a.rows) == len(b.rows) for a, b in zip(shares[0], shares[2], strict=True))


def test_bucketing_keeps_every_row_and_saves_padding():
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    rows = batches.order(1000, batch_size=50, seed=0, epoch=1, lengths=lengths)
    assert sorted(rows) == list(range(1000))

    def padded(order):
        return sum(50 * lengths[order[i : i + 50]].max() for i in range(0, 1000, 50))

    assert padded(rows) < 0.65 * padded(batches.order(1000, batch_size=50, seed=0, epoch=1))


def test_prefetch_gives_the_same_and_raises_what_the_maker_raised():
    assert list(batches.prefetch(range(9), lambda i: i * i, ahead=2)) == [i * i for i in range(9)]
    with pytest.raises(ZeroDivisionError):
        list(batches.prefetch([1, 0], lambda i: 1 // i, ahead=2))


def test_the_same_seed_gives_the_same_losses_and_learns():
    first, second = train(mini_task.Net(dropout=0.2)), train(mini_task.Net(dropout=0.2))
    assert [f["train_loss"] for f in first.history] == [f["train_loss"] for f in second.history]
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert first.history[-1]["train_loss"] < first.history[0]["train_loss"]


def test_padding_rows_have_no_weight_and_accumulation_changes_nothing():
    plain = train(mini_task.Net(batch_size=32))
    for accumulation in (2, 3):  # 32 rows in 3 micro-batches: one is padded
        other = train(mini_task.Net(batch_size=32), settings=EngineSettings(accumulation=accumulation))
        for a, b in zip(plain.history, other.history, strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
            assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-5)


def test_two_workers_train_as_one(tmp_path):
    candidate = mini_task.Net(batch_size=32)  # 150 rows: the last batch of 22 leaves shares of 11
    alone = losses_of(train(candidate))
    stages = [EngineSettings(zero_stage=0), EngineSettings(zero_stage=2)]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=train_on_rank, args=(r, 2, tmp_path, candidate, stages, queue)) for r in (0, 1)]
    for process in ranks:
        process.start()
    for _ in stages:
        np.testing.assert_allclose(alone, queue.get(timeout=90), rtol=2e-5)
    for process in ranks:
        process.join(30)


def test_the_first_step_is_that_of_a_plain_loop():
    candidate = mini_task.Net(batch_size=200, max_epochs=1, weight_decay=0.1, lr=0.05)
    outcome = train(candidate, validation=False)
    torch.manual_seed(3)
    state, rows = data(candidate, validation=False)
    module = candidate.module(state)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    candidate.loss(module, candidate.batch(rows.train, np.arange(150))).mean().backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(outcome.weights[name], value, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_optimizer():
    candidate = mini_task.Net()
    state, rows = data(candidate)
    rows.train["x"][70, 1] = np.nan
    seen = {}
    real = engine.start

    def start(module, *args, **kwargs):
        seen["module"] = module
        return real(module, *args, **kwargs)

    with engine.single_process_group("cpu"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "start", start)
        with pytest.raises(NonFiniteError, match=r"epoch 1, step \d of 3: got loss nan"):
            loop.train(candidate, state, rows, seed=3)
    assert all(bool(torch.isfinite(p).all()) for p in seen["module"].parameters())


def test_early_stopping_keeps_the_best_epoch():
    candidate = mini_task.Net(lr=0.05, max_epochs=40, patience=2, hidden=32)
    outcome = train(candidate)
    figures = [f["auc"] for f in outcome.history]
    assert outcome.rounds == int(np.argmax(figures)) + 1
    assert len(figures) in (outcome.rounds + 2, 40)
    state, _ = data(candidate)
    again = mini_task.score(
        mini_task.rows(80, 1), candidate.fitted(state, outcome.weights, 1).predict(mini_task.rows(80, 1))
    )
    assert again["auc"] == pytest.approx(max(figures), abs=1e-6)


def test_a_fixed_number_of_rounds_ignores_patience():
    outcome = train(mini_task.Net(max_epochs=9), rounds=5, validation=False)
    assert (outcome.rounds, len(outcome.history)) == (5, 5)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_resumed_training_ends_with_the_same_weights(tmp_path, zero_stage):
    candidate, settings = mini_task.Net(dropout=0.3, max_epochs=4), EngineSettings(zero_stage=zero_stage)
    whole = train(candidate, settings=settings)

    def stop_after_two(figures, save):
        if figures["epoch"] == 2:
            save(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(candidate, settings=settings, report=stop_after_two)
    resumed = train(candidate, settings=settings, resume=tmp_path)
    assert [f["train_loss"] for f in resumed.history] == [f["train_loss"] for f in whole.history]
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_learning_rate_warms_up_and_falls():
    candidate = dataclasses.make_dataclass("C", ["lr", "schedule", "warmup_share"])(1.0, "cosine", 0.1)
    rates = [loop.learning_rate(candidate, step, 100) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.05 + 0.95 / 2)
    assert 0.05 < rates[99] < 0.06


def test_the_engine_is_chosen_from_size_and_device():
    def chosen(num_parameters, device="cuda", memory_gib=40, workers=8, **settings):
        return engine.choose(
            EngineSettings(**settings), num_parameters=num_parameters, batch_size=256, num_workers=workers,
            device=device, memory_bytes=memory_gib * 2**30, has_bf16=device == "cuda", lr=1e-3, weight_decay=0.0,
        )[0]  # fmt: skip

    # 16 bytes per parameter: 1e6 are 16 MB, 2e9 are 30 GiB of 20 GiB room (stage 1: 8 + 1 bytes = 17 GiB)
    assert chosen(10**6)["zero_optimization"] == {"stage": 0}
    assert chosen(2 * 10**9)["zero_optimization"]["stage"] == 1
    assert chosen(8 * 10**9)["zero_optimization"]["stage"] == 3
    assert "offload_optimizer" in chosen(10**11)["zero_optimization"]
    assert chosen(10**6)["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "torch_autocast" not in chosen(10**6, device="cpu")
    assert chosen(10**6, accumulation=3)["train_micro_batch_size_per_gpu"] == 11  # 256 / (8 x 3) = 10.7
    assert chosen(10**6, gradient_clipping=0.0)["gradient_clipping"] == 0.0
    assert chosen(10**6, zero_stage=2)["zero_optimization"]["stage"] == 2


def test_points_follow_grid_and_overrides():
    columns = ["x0", "x1", "x2"]

    def points_of(overrides, grid=True, candidates=("net",)):
        chosen = points.choose(
            mini_task, columns, 100, candidates=candidates, overrides=overrides, grid=grid, memory_gib=1
        )
        return [point.settings for point in chosen]

    assert len(points_of({})) == 6
    assert [p["hidden"] for p in points_of({}, grid=False)] == [8]
    assert {p["lr"] for p in points_of({"lr": 1})} == {1.0}  # fixed, and a float as the field is
    assert {p["hidden"] for p in points_of({"net.hidden": 3, "hidden": 5})} == {3}
    with pytest.raises(ConfigError, match="--set lrr"):
        points_of({"lrr": 1.0})
    with pytest.raises(ConfigError, match="--set hidden: got 'x', expected int"):
        points_of({"hidden": "x"})
    with pytest.raises(ConfigError, match="zero_stage 9"):
        points.engine_settings({"engine.zero_stage": 9})
