"""What a job says of a wrong request, without a cluster."""

import json

import pytest

import jobs
from jobs import job


@pytest.mark.parametrize("flag", ["--workers", "--concurrency"])
@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_a_count_below_one_is_refused(flag, text, capsys):
    with pytest.raises(SystemExit) as ended:
        job("train", lambda *_: None, flags=("num_workers", "concurrency"), argv=["churn", "--org", "x", flag, text])
    assert ended.value.code == 2
    assert f"argument {flag}: got '{text}', expected a whole number of at least 1" in capsys.readouterr().err


def test_a_job_over_several_tasks_says_which_one_begins(org_file, monkeypatch, capsys):
    monkeypatch.setattr(jobs.signal, "signal", lambda *_: None)

    def told(*tasks: str) -> list[dict]:
        refused = {"promoted": False, "version": "v"}
        assert job("publish", lambda *_: refused, argv=[*tasks, "--org", str(org_file)]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return [line for line in lines if line["event"].endswith(".begun")]

    (first, second) = told("churn", "leads")
    assert (first["event"], first["number"], first["of"]) == ("publish churn.begun", 1, 2)
    assert (second["event"], second["number"], second["of"]) == ("publish leads.begun", 2, 2)
    assert 0 <= first["elapsed_s"] <= second["elapsed_s"]
    assert told("churn") == []
