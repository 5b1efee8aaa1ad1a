"""The causal Transformer: what it may see, how rows are padded, and what its loss counts."""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_neighbours import AS_OF, rows

from crmray.models import histories, sasrec
from crmray.models.sasrec import SASRec

TRAIN = rows([["a", "b", "c", "d"], ["b", "c"], ["d"], ["c", "d", "a"]])
SMALL = SASRec(dim=8, num_heads=2, num_layers=2, max_length=4, dropout=0.0, batch_size=2)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    state = SMALL.prepare(TRAIN)
    module = SMALL.module(state)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return state, module.eval()


def batch_of(state, table: pa.Table, which=None) -> dict[str, torch.Tensor]:
    return SMALL.batch(SMALL.encode(state, table), np.arange(table.num_rows) if which is None else np.array(which))


def test_a_later_item_changes_nothing_before_it(made):
    state, module = made
    one = batch_of(state, rows([["a", "b", "c", "d"]]))
    other = batch_of(state, rows([["a", "b", "d", "c"]]))
    left, right = module(one["items"], one["gaps"]), module(other["items"], other["gaps"])
    assert torch.equal(left[0, :2], right[0, :2])
    assert not torch.allclose(left[0, 2:], right[0, 2:])


def test_padding_is_invisible(made):
    state, module = made
    table = rows([["a", "b", "c", "d"], ["b", "c"]])
    together = module.next_scores(batch_of(state, table))
    alone = module.next_scores(batch_of(state, table, [1]))
    assert torch.allclose(together[1], alone[0], atol=1e-6)
    losses = module.train().sequence_loss(batch_of(state, table), 100, 10)
    assert torch.allclose(losses[1], module.sequence_loss(batch_of(state, table, [1]), 100, 10)[0], atol=1e-6)
    module.eval()


def test_the_loss_is_the_cross_entropy_of_each_next_item(made):
    state, module = made
    batch = batch_of(state, rows([["a", "b", "c"]]))
    hidden = module(batch["items"], batch["gaps"])
    shares = torch.log_softmax(module.logits(hidden)[0], dim=1)
    codes = state["catalogue"].code_of
    expected = -(shares[0, codes["b"]] + shares[1, codes["c"]]) / state["labels_per_row"]
    assert state["labels_per_row"] == (3 + 1 + 0 + 2) / 4
    assert SMALL.loss(module.train(), batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    module.eval()


def test_items_of_one_visit_predict_the_next_visit_not_each_other(made):
    state, module = made
    batch = batch_of(state, rows([["a", "b", "c", "d"]], days=[[9.0, 9.0, 4.0, 4.0]]))
    shares = torch.log_softmax(module.logits(module(batch["items"], batch["gaps"]))[0], dim=1)
    codes = state["catalogue"].code_of
    expected = -(shares[1, codes["c"]] + shares[1, codes["d"]]) / state["labels_per_row"]
    assert SMALL.loss(module.train(), batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    module.eval()


def test_a_dated_target_is_not_trained_on_and_an_undated_one_is_the_next_item(made):
    state, module = made
    plain, dated = rows([["a", "b"]]), rows([["a", "b"]], targets=[["c"]])
    undated = rows([["a", "b"]], as_of=None, targets=[["c"]])
    module.train()
    learned = [SMALL.training_rows(table) for table in (plain, dated, undated)]
    losses = [SMALL.loss(module, batch_of(state, table))[0].item() for table in learned]
    longer = SMALL.loss(module, batch_of(state, rows([["a", "b", "c"]])))[0].item()
    module.eval()
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(longer, rel=1e-5)


def test_a_customer_is_trained_on_once_by_the_newest_row():
    later = rows([["a", "b", "c"]], days=[[13.0, 12.0, 1.0]], as_of=AS_OF + timedelta(days=10))
    learned = SMALL.training_rows(pa.concat_tables([rows([["a", "b"]]), later]))
    assert learned["history"].to_pylist() == [["a", "b", "c"]]
    older, undated = rows([["a", "b"]], as_of=None), rows([["a", "b"]], as_of=None, targets=[["c"]])
    assert SMALL.training_rows(pa.concat_tables([older, undated]))["history"].to_pylist() == [["a", "b", "c"]]


def test_in_evaluation_the_loss_is_that_of_the_targets_and_hits_are_found(made):
    state, module = made
    batch = batch_of(state, rows([["a", "b"], ["a"]], targets=[["c", "d"], None]))
    shares = torch.log_softmax(module.next_scores(batch)[0], dim=0)
    codes = state["catalogue"].code_of
    losses = SMALL.loss(module, batch)
    assert losses[0].item() == pytest.approx(-(shares[codes["c"]] + shares[codes["d"]]).item() / 2, rel=1e-5)
    assert losses[1].item() == 0
    hits = SMALL.outputs(module, batch)["hits"]
    assert hits[0].tolist() == [1, 1] + [0] * 8  # c and d are all that is left
    assert hits[1].sum() == 0


def test_the_newest_entries_are_read_and_gaps_are_days_between_visits():
    catalogue = SMALL.prepare(TRAIN)["catalogue"]
    table = rows([["a", "b", "c", "d", "a"]], days=[[100.0, 50.0, 40.0, 39.5, 39.5]])
    arrays = sasrec.sequences(histories.encode(table, catalogue), len(catalogue), 4)
    assert catalogue.items[arrays["items"][0]].tolist() == ["b", "c", "d", "a"]
    assert arrays["gaps"][0].tolist() == [7, 5, 1, 0]  # 50 days: 2^6; 10: 2^4; half a day; the same visit


def test_sampled_losses_estimate_the_full_one(made):
    state, module = made
    batch = batch_of(state, rows([["a", "b", "c", "d"]]))
    full = module.sequence_loss(batch, 100, 10)[0].item()
    torch.manual_seed(0)
    with torch.no_grad():
        sampled = np.mean([module.sequence_loss(batch, 0, 4_000)[0].item() for _ in range(5)])
    # the drawn set leaves the label itself out of the denominator's sum and adds it once: the same expectation
    assert sampled == pytest.approx(full, rel=0.05)


def test_biases_start_at_popularity():
    state = SMALL.prepare(TRAIN)
    module = SMALL.module(state)
    buyers = state["catalogue"].buyers
    assert module.bias_I[0].item() == pytest.approx(math.log(buyers[0] / buyers.sum()), rel=1e-6)


def test_a_saved_model_gives_the_same_bits_and_cold_customers_get_what_is_popular(made):
    state, module = made
    model = SMALL.fitted(state, module.state_dict(), 3)
    again = SASRec.load(model.save())
    table = rows([["a"], [], ["zzz"]])
    assert np.array_equal(model.scores(table), again.scores(table))
    assert again.rounds == 3
    assert np.array_equal(model.scores(table)[1], state["catalogue"].popularity)
    assert np.array_equal(model.scores(table)[2], state["catalogue"].popularity)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="dim=10 and num_heads=4"):
        SASRec(dim=10, num_heads=4)
    with pytest.raises(ValueError, match="dropout=2"):
        SASRec(dropout=2)
    with pytest.raises(ValueError, match="schedule='linear'"):
        SASRec(schedule="linear")
