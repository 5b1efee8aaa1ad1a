"""Who may import whom (the order of the house), who may import Ray, and that nothing happens at import."""

from __future__ import annotations

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A module may import those of its own layer and of layers above it in this list.
LAYERS = (
    (
        "crmray.errors",
        "crmray.config",
        "crmray.sections",
        "crmray.sources",
        "crmray.log",
        "crmray.schema",
        "crmray.storage",
        "crmray.disk",
        "crmray.encryption",
        "crmray.claim",
        "crmray.privacy",
        "crmray.salesforce.ids",
    ),
    ("crmray.data", "crmray.models", "crmray.evaluate", "crmray.salesforce"),
    ("crmray.tasks",),
    ("crmray.bundle", "crmray.registry", "crmray.keys", "crmray.head"),
    (
        "crmray.cluster",
        "crmray.dashboard",
        "crmray.train",
        "crmray.score",
        "crmray.erase",
        "crmray.forget",
    ),
    ("crmray.org", "crmray.cli", "crmray.commands", "jobs", "serve"),
)
# Modin needs Ray to cut and merge shards; the others run on it by their nature.
MAY_IMPORT_RAY = ("crmray.cluster", "crmray.data.shard", "crmray.train", "crmray.score", "jobs", "serve")
# What the package exports is the Python way in.
LAZY_EXPORT = {("crmray", "crmray.org")}


@functools.cache
def modules() -> dict[str, Path]:
    paths = [path for folder in ("crmray", "jobs", "serve") for path in (ROOT / folder).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(name: str, path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import in line {node.lineno}, expected absolute ones"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules() else node.module


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def layer(name: str) -> int | None:
    return next((number for number, prefixes in enumerate(LAYERS) if within(name, prefixes)), None)


def test_every_module_has_a_place_in_the_house() -> None:
    assert [name for name in modules() if name != "crmray" and layer(name) is None] == []


def test_imports_go_one_way() -> None:
    wrong = []
    for name, path in modules().items():
        for other in imports(name, path):
            theirs, ours = layer(other), layer(name)
            if theirs is None or (name, other) in LAZY_EXPORT:
                continue
            if ours is None or theirs > ours:
                wrong.append(f"{name} imports {other}")
            if within(name, ("serve",)) and within(other, ("crmray.train",)):
                wrong.append(f"{name} imports {other}: serving needs no training code")
    assert wrong == []


def test_ray_is_imported_only_where_it_runs() -> None:
    wrong = {
        name: other
        for name, path in modules().items()
        for other in imports(name, path)
        if within(other, ("ray", "modin")) and not within(name, MAY_IMPORT_RAY)
    }
    assert wrong == {}


def test_deepspeed_is_imported_only_by_the_engine() -> None:
    wrong = [
        name for name, path in modules().items() if any(within(other, ("deepspeed",)) for other in imports(name, path))
    ]
    assert [name for name in wrong if not within(name, ("crmray.train",))] == []


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    """An import of the tasks, as a worker or an endpoint does it first of all, stays cheap."""
    heavy = ("sklearn", "scipy.stats", "skops", "lightgbm", "statsforecast", "transformers", "tokenizers", "plotly")
    code = f"import sys, crmray.tasks; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    """Importing everything in an empty folder with an empty home leaves no file, no Ray, no log handler."""
    code = (
        "import importlib, logging, os, sys\n"
        "before = dict(os.environ)\n"
        f"for name in {sorted(name for name in modules() if not name.endswith('__main__'))!r}:\n"
        "    importlib.import_module(name)\n"
        "import ray\n"
        "assert not ray.is_initialized()\n"
        "assert not logging.getLogger('crmray').handlers\n"
        "changed = {key for key in os.environ if before.get(key) != os.environ[key] and 'CRMRAY' in key}\n"
        "assert not changed and before.get('RAY_AUTH_MODE') == os.environ.get('RAY_AUTH_MODE'), changed\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "MPLCONFIGDIR": str(tmp_path / "mpl"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    left = [
        path
        for path in home.rglob("*")
        if path.is_file() and ".cache" not in path.parts and ".triton" not in path.parts
    ]
    assert left == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs").glob("*.py")))
def test_jobs_are_thin(name: str) -> None:
    path = ROOT / "jobs" / f"{name}.py"
    if name != "__init__":
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
        assert importlib.util.find_spec(f"jobs.{name}")
