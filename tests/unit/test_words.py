"""How figures are named and written on pages and cards."""

from crmray.evaluate import pages
from crmray.evaluate.words import name_of, setting_of, text_of


def test_figures_have_a_name_and_a_unit_those_of_parts_too():
    assert [name_of(name) for name in ("wape", "wape_category", "share_weekend")] == [
        "WAPE", "WAPE, category", "share weekend",
    ]  # fmt: skip
    assert text_of(0.1775, "wape_category") == text_of(0.1775, "accuracy") == "17.8\u202f%"
    assert [text_of(value) for value in (7e-18, -0.0, 0.12345, 12345.6)] == ["< 0.0001", "0", "0.1235", "12,345.6"]
    assert [text_of(value) for value in (1e-4, -9e-5, 0.0001234)] == ["0.0001", "> -0.0001", "0.0001234"]
    assert [setting_of(one) for one in (1e-5, 0.25, 4096, None, [], [0.1, None], {"a": {}}, list(range(13)), True)] == [
        "1e-05", "0.25", "4,096", "none", "none", "0.1, none", "a: none", "13 values", "yes",
    ]  # fmt: skip
    told = "".join(pages._tables("drift", {"validation": {"psi": {"age": 0.3, "plan": 0.1}}}, ""))
    assert "from 0.25 on the model should be looked at" in told  # what a table shows
    assert "<th scope=row>age</th>" in told  # one set of figures: a line for each
