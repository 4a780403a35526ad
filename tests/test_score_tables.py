"""Scores of other programs come with ids, in whatever order and form, or are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import datadiet

from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.storage.score_tables import read_score_table


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def scores(digits) -> pd.DataFrame:
    """Shuffled, as other programs may write them."""
    values = np.random.RandomState(0).gamma(2, size=digits.num_examples)
    names, index = digits.example_ids.astype(str), np.arange(digits.num_examples)
    frame = pd.DataFrame({"example_id": names, "index": index, "score": values, "label": digits.train_labels})
    return frame.sample(frac=1, random_state=1)


def test_a_table_in_any_form_and_order_is_read_and_chosen_by(tmp_path, digits, scores):
    own = scores.rename(columns={"example_id": "Example ID", "score": "difficulty"})
    scores.to_csv(tmp_path / "a.csv", index=False)
    own[["Example ID", "difficulty"]].to_csv(tmp_path / "b.csv", index=False, sep=";")
    scores[["index", "score"]].to_csv(tmp_path / "c.csv", index=False)
    scores.to_parquet(tmp_path / "d.parquet")
    np.savez(tmp_path / "e.npz", ids=scores["index"].to_numpy(), scores=scores["score"].to_numpy())
    expected = scores.set_index("index").score.sort_index().to_numpy()
    for name in ("a.csv", "b.csv", "c.csv", "d.parquet", "e.npz"):
        np.testing.assert_allclose(read_score_table(tmp_path / name, digits), expected, rtol=1e-12, err_msg=name)
    given = {"dataset": "digits", "selector": "keep_max", "size": 100, "offline": True}
    datadiet("select", tmp_path, scores=tmp_path / "a.csv", **given)
    kept = pd.read_csv(tmp_path / "exps/select/size_100.keep_max/run_0/kept.csv")
    assert set(kept.example_id) == set(digits.example_ids[np.argsort(-expected)[:100]])


def test_all_that_stands_in_the_way_is_named_at_once(tmp_path, digits, scores):
    bad = scores.astype({"score": object})
    bad.iloc[0, 0], bad.iloc[1, 2], bad.iloc[2, 0] = "gone", "n/a", bad.iloc[3, 0]
    bad.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(UserError) as told:
        read_score_table(tmp_path / "bad.csv", digits)
    for part in ("1 of 1438 ids are not of digits: gone", "2 of 1438 training examples have no score",
                 "1 training examples are named several times", "1 of 1438 scores are no finite numbers"):  # fmt: skip
        assert part in str(told.value)
    scores[["example_id", "label", "index"]].assign(more=1).to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(UserError, match="one that is called score; got example_id, label, index, more"):
        read_score_table(tmp_path / "two.csv", digits)


def test_a_study_of_given_scores_trains_no_network_to_score(tmp_path, digits, scores):
    scores[["example_id", "score"]].to_csv(tmp_path / "own.csv", index=False)
    given = {"scores": f"mine={tmp_path / 'own.csv'}", "score_types": "none", "fractions": 0.5, "eval_runs": 2}
    given |= {"dataset": "digits", "model": "mlp", "width": 8, "num_steps": 22, "augment": False, "workers": 1}
    done = datadiet("study", tmp_path, offline=True, **given)
    exps = tmp_path / "exps"
    assert {path.parent.name for path in (exps / "study/full_data").glob("run_*/args.json")} == {"run_10", "run_11"}
    assert "keep_max mine" in done.output
    page = (exps / "study/report.html").read_text()
    assert "Scores that were given, for which nothing was trained here: mine." in page
    expected = scores.set_index("index").score.sort_index().to_numpy()
    kept = pd.read_csv(exps / "study/kept/keep_max_mine_719.csv")
    assert set(kept["index"][kept.kept]) == set(np.argsort(-expected)[:719])
    (scores.assign(score=-scores.score)).to_csv(tmp_path / "own.csv", index=False)
    told = datadiet("study", tmp_path, offline=True, expect=2, **given).output
    assert "holds other scores" in told
    told = datadiet("study", tmp_path, offline=True, expect=2, **given | {"scores": "mine=gone.csv"}).output
    assert "scores=gone.csv: no such file; expected a score file (.npy), or a table of ids and scores" in told
    told = datadiet("study", tmp_path, offline=True, expect=2, **given | {"scores": "l2_error=own.csv"}).output
    assert "scores=l2_error=own.csv: expected NAME=PATH" in told
    assert "'l2_error' is taken" in told
