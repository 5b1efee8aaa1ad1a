"""connect, preflight, map_shards and metrics on a real local cluster of two CPUs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import ray

from crmray import cluster, log
from crmray.errors import CapacityError, ClusterError, DataError, WatchdogError

pytestmark = pytest.mark.usefixtures("ray_folder")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    seen: list[tuple[str, dict]] = []
    monkeypatch.setattr(log, "event", lambda name, *, level=20, **fields: seen.append((name, fields)))
    return seen


def square(x: int) -> int:
    return x * x


def test_connect_is_idempotent_and_a_jobs_url_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ray.get_runtime_context().gcs_address
    cluster.connect()
    assert ray.get_runtime_context().gcs_address == before
    assert before.startswith("127.0.0.1:"), "a laptop run listens on loopback only"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=r"got cluster address 'http://head:8265', expected host:port"):
        cluster.connect("http://head:8265")


def test_map_gives_every_item_once_in_any_order(events: list) -> None:
    assert dict(cluster.map_shards(square, range(7), label="squares", max_in_flight=3)) == {x: x * x for x in range(7)}
    assert [fields["done"] for name, fields in events if name == "squares.done"] == [7]
    assert list(cluster.map_shards(square, [], label="nothing")) == []


def test_map_hands_in_no_more_than_it_may(tmp_path: Path) -> None:
    """With one at a time, a second task never starts before the first result was taken."""

    def mark(x: int) -> int:
        (tmp_path / str(x)).touch()
        return len(list(tmp_path.iterdir()))

    seen = [count for _, count in cluster.map_shards(mark, range(3), label="one", max_in_flight=1)]
    assert seen == [1, 2, 3]


def test_a_task_whose_worker_dies_is_tried_again(tmp_path: Path) -> None:
    def die_once(path: Path) -> int:
        if path.exists():
            return os.getpid()
        path.touch()
        os._exit(1)

    ((_, pid),) = cluster.map_shards(die_once, [tmp_path / "died"], label="mortal")
    assert pid != os.getpid()


def test_a_task_that_always_kills_its_worker_ends_in_one_message() -> None:
    with pytest.raises(ClusterError, match=r"doomed shard-3: its worker died four times .* memory"):
        list(cluster.map_shards(lambda _: os._exit(1), ["shard-3"], label="doomed"))


def test_a_users_mistake_arrives_as_our_error_without_rays_wrapping() -> None:
    def refuse(x: int) -> None:
        raise DataError(f"column 'price' of part {x}: got 'abc', expected a number")

    with pytest.raises(DataError, match=r"^column 'price' of part 0: got 'abc', expected a number$") as caught:
        list(cluster.map_shards(refuse, [0], label="refusing"))
    assert type(caught.value) is DataError


def test_a_fault_of_ours_keeps_its_remote_traceback() -> None:
    def broken(x: int) -> int:
        return {}[x]

    with pytest.raises(KeyError, match="in broken"):
        list(cluster.map_shards(broken, [0], label="broken"))


def test_preflight_counts_places_node_by_node() -> None:
    cluster.preflight(2, 1)
    cluster.preflight(4, 0.5)
    with pytest.raises(CapacityError, match=r"1 × \(2 CPU, 0 GPU\).*room for 2 workers of 1 CPU.*expected room for 3"):
        cluster.preflight(3, 1)
    with pytest.raises(CapacityError, match="room for 0 workers"):
        cluster.preflight(1, 1, 1)
    with pytest.raises(CapacityError, match="room for 0 workers"):
        list(cluster.map_shards(square, [1], label="huge", num_cpus=3))


def test_preflight_trusts_what_the_autoscaler_may_add(monkeypatch: pytest.MonkeyPatch) -> None:
    def groups() -> list[tuple[dict[str, float], int]]:
        return [({"CPU": 8.0}, 1), ({"CPU": 96.0, "GPU": 8.0}, 2)]

    monkeypatch.setattr(cluster, "_node_groups", groups)
    cluster.preflight(16, 8, 1)
    with pytest.raises(CapacityError, match="room for 16 workers"):
        cluster.preflight(17, 8, 1)


def test_a_map_that_cannot_start_says_what_it_waits_for_and_gives_up(
    events: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "TICK_S", 0.3)

    @ray.remote(num_cpus=2)
    class Hog:
        def ready(self) -> bool:
            return True

    hog = Hog.remote()
    ray.get(hog.ready.remote())
    with pytest.raises(WatchdogError, match=r"late: waited \d+ s for 1 free CPU on one node; 0 of 2 CPUs are free"):
        list(cluster.map_shards(square, [1, 2], label="late", give_up_s=2))
    told, *_ = (fields for name, fields in events if name == "late.waiting")
    assert told["because"].startswith("0 of 2 CPUs are free")
    ray.kill(hog)


def test_a_long_task_is_named_but_not_given_up(events: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TICK_S", 0.2)
    assert list(cluster.map_shards(square, [2], label="warm")) == [(2, 4)]  # a worker that is there starts at once

    def slow(x: str) -> str:
        time.sleep(4)
        return x

    assert list(cluster.map_shards(slow, ["part-7"], label="slow", give_up_s=3)) == [("part-7", "part-7")]
    assert ["part-7"] in [fields["parts"] for name, fields in events if name == "slow.running"]


def test_metrics_take_exactly_their_tags() -> None:
    cluster.record("crmray_rows_total", 3, stage="shard", name="transactions")
    cluster.record("crmray_loss", 0.5, task="churn", candidate="lstm", part="train")
    cluster.record("crmray_rows_total", 0, stage="shard", name="transactions")  # an empty shard
    with pytest.raises(AssertionError, match="got tags"):
        cluster.record("crmray_loss", 0.5, task="churn")
