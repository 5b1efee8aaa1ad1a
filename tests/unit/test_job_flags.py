"""What a job says of a wrong request, without a cluster."""

import pytest

from jobs import job


@pytest.mark.parametrize("flag", ["--workers", "--concurrency"])
@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_a_count_below_one_is_refused(flag, text, capsys):
    with pytest.raises(SystemExit) as ended:
        job("train", lambda *_: None, flags=("num_workers", "concurrency"), argv=["churn", "--org", "x", flag, text])
    assert ended.value.code == 2
    assert f"argument {flag}: got '{text}', expected a whole number of at least 1" in capsys.readouterr().err
