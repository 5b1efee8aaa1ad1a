"""What cluster/ ships is valid to the last field, closed where it has to be, and agrees with the code."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from crmray import cluster, org
from crmray.cluster import METRICS

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
CLOSED_PORTS = {6379, 8265, 10001, 8404, 9101}
RAY_PODS = {"app.kubernetes.io/part-of": "crmray", "app.kubernetes.io/component": "ray"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def strict(schema: Any) -> Any:
    """A CRD prunes unknown fields silently; here they are refused. Free-form maps and int-or-string stay as is."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items() if key != "properties"}
    if "properties" in schema:
        closed["properties"] = {key: strict(part) for key, part in schema["properties"].items()}
        closed.setdefault("additionalProperties", False)
    if "x-kubernetes-int-or-string" in schema:
        closed.pop("type", None)
    return closed


def crd(kind: str) -> dict[str, Any]:
    folder = Path(os.environ.get("CRMRAY_KUBERAY_SCHEMAS") or ROOT.parent / "shared" / "kuberay")
    path = folder / f"{kind.lower()}s.v1.schema.json"
    if not path.exists():
        pytest.skip(f"no KubeRay schemas at {folder}: set CRMRAY_KUBERAY_SCHEMAS to the folder with {path.name}")
    return strict(json.loads(path.read_text(encoding="utf-8")))


def problems(kind: str, manifest: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(crd(kind))
    return [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("RayCluster", "raycluster.yaml"), ("RayJob", "rayjob.yaml"), ("RayService", "rayservice.yaml")],
)
def test_kuberay_manifests_are_valid_and_a_typo_is_not(kind: str, name: str) -> None:
    (manifest,) = documents(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert problems(kind, manifest) == []
    manifest["spec"]["authOption"] = {"mode": "token"}
    assert any("authOption" in text for text in problems(kind, manifest))


def test_ray_up_is_valid_and_a_typo_is_not() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    (config,) = documents("ray-up-p4d.yaml")
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**config, "max_worker": 1}, schema)


def test_ray_up_listens_on_loopback_with_a_token_on_every_node() -> None:
    (config,) = documents("ray-up-p4d.yaml")
    head, worker = (config[f"{node}_start_ray_commands"][-1] for node in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in command
    a100 = config["available_node_types"]["a100"]["node_config"]
    assert a100["InstanceType"] == "p4d.24xlarge"
    assert [card["NetworkCardIndex"] for card in a100["NetworkInterfaces"]] == [0, 1, 2, 3]
    assert all(
        card["InterfaceType"] == "efa" and card["SubnetId"] and card["Groups"] for card in a100["NetworkInterfaces"]
    )
    assert not {"SubnetIds", "SecurityGroupIds"} & set(a100), "Ray refuses them beside NetworkInterfaces"


def clusters() -> Iterator[dict[str, Any]]:
    yield documents("raycluster.yaml")[0]["spec"]
    yield documents("rayservice.yaml")[0]["spec"]["rayClusterConfig"]


def templates() -> Iterator[dict[str, Any]]:
    for spec in clusters():
        yield spec["headGroupSpec"]["template"]
        yield from (group["template"] for group in spec["workerGroupSpecs"])


def test_clusters_ask_for_the_token_keep_the_gcs_state_and_let_idle_nodes_go() -> None:
    for spec in clusters():
        assert spec["rayVersion"] == ray.__version__
        assert spec["authOptions"] == {"mode": "token", "secretName": "crmray-auth"}
        assert spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "crmray-redis"
        assert spec["enableInTreeAutoscaling"]
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert all(group["idleTimeoutSeconds"] for group in spec["workerGroupSpecs"])


def test_pods_run_without_root_with_fixed_sizes_and_shared_memory() -> None:
    for template in templates():
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert template["metadata"]["labels"] == RAY_PODS, "the network policy selects by these labels"
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 1000
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert set(mounted.values()) == set(volumes)


def test_a100_nodes_start_at_zero_and_are_chosen_by_label_and_taint() -> None:
    (group,) = (
        group for group in documents("raycluster.yaml")[0]["spec"]["workerGroupSpecs"] if group["groupName"] == "a100"
    )
    pod = group["template"]["spec"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert pod["nodeSelector"]["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-40GB"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_network_policy_closes_rays_own_ports_to_strangers() -> None:
    policy = documents("network-policy.yaml")[0]["spec"]
    assert policy["podSelector"]["matchLabels"] == RAY_PODS
    assert policy["policyTypes"] == ["Ingress"]
    for rule in policy["ingress"]:
        (peer,) = rule["from"]
        labels = peer.get("podSelector", {}).get("matchLabels", {})
        ports = {entry["port"] for entry in rule.get("ports", ())}
        if labels == RAY_PODS and "namespaceSelector" not in peer:
            continue  # the nodes among themselves
        assert ports, "a rule without ports opens them all"
        trusted = labels.get("app.kubernetes.io/component") == "submitter" or "kuberay-operator" in labels.values()
        assert ports & CLOSED_PORTS <= ({8265} if trusted else set())


def test_rayservice_serves_what_serve_config_says() -> None:
    ours = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))
    theirs = yaml.safe_load(documents("rayservice.yaml")[0]["spec"]["serveConfigV2"])
    for config in (ours, theirs):
        ServeDeploySchema.model_validate(config)
    assert theirs["http_options"].pop("host") == "0.0.0.0"
    assert ours["http_options"].pop("host") == "127.0.0.1"
    for config in (ours, theirs):
        for application in config["applications"]:
            for deployment in application["deployments"]:
                deployment.get("autoscaling_config", {}).pop("max_replicas", None)
    assert theirs == ours


def test_rayjob_runs_a_job_that_exists_on_the_cluster_that_exists() -> None:
    job = documents("rayjob.yaml")[0]["spec"]
    station = re.match(r"python -m jobs\.(\w+) ", job["entrypoint"])
    assert station
    assert (ROOT / "jobs" / f"{station[1]}.py").exists()
    assert job["clusterSelector"] == {"ray.io/cluster": documents("raycluster.yaml")[0]["metadata"]["name"]}


def test_image_pins_what_the_package_pins_and_runs_without_root() -> None:
    lines = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    pins = re.findall(r"^torch==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pins[0] in lines
    assert lines.rstrip().splitlines()[-2] == "USER 1000:1000"
    assert "ENV RAY_AUTH_MODE=token" in lines


def test_dashboard_shows_metrics_that_exist() -> None:
    shown = json.dumps(json.loads((CLUSTER / "grafana-crmray.json").read_text(encoding="utf-8"))["panels"])
    names = {re.sub(r"_bucket$", "", name) for name in re.findall(r"ray_(crmray_\w+)", shown)}
    served = re.findall(
        r'(Counter|Histogram)\(\s*"(crmray_\w+)"', (ROOT / "serve" / "app.py").read_text(encoding="utf-8")
    )
    # Prometheus adds _total to the name of a counter that does not end with it.
    of_requests = {name + ("_total" if kind == "Counter" else "") for kind, name in served}
    assert of_requests & names
    assert names <= set(METRICS) | of_requests


def test_every_metric_of_a_stage_is_recorded_somewhere() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "crmray").rglob("*.py"))
    assert [name for name in METRICS if f'record("{name}"' not in code] == []


def test_rows_are_counted_as_results_come(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[float, dict[str, str]]] = []
    monkeypatch.setattr(cluster, "record", lambda metric, value, /, **tags: counted.append((value, tags)))
    monkeypatch.setattr(cluster, "map_shards", lambda fn, items, *, label: ((item, fn(item)) for item in items))
    of_shard, of_examples = (
        org._counting("shard", org._rows_of_shard),
        org._counting("examples", org._rows_of_examples, "churn"),
    )
    list(of_shard(lambda _: None, ["orders"], label="shard.orders.start"))
    list(of_shard(lambda rows: {"profile": {"rows": rows}}, [5], label="shard.orders"))
    splits = {"counts": {"train": {"2026-01-01": {"rows": 2}, "2026-02-01": {"rows": 3}}, "now": {"": {"rows": 4}}}}
    assert list(of_examples(lambda _: splits, [0], label="examples")) == [(0, splits)]
    orders, churn = {"stage": "shard", "name": "orders"}, {"stage": "examples", "name": "churn"}
    assert counted == [(0, orders), (5, orders), (9, churn)]


def test_dashboard_sources_are_there() -> None:
    for name in ("prometheus.yaml", "pod-monitor.yaml", "redis.yaml", "storage.yaml"):
        assert documents(name)
