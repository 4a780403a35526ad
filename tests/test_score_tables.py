"""Scores of other programs come with ids, in whatever order and form, or are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import datadiet

from datadiet.data.align import rows_of
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


def test_what_other_scores_chose_is_not_replaced_unasked(tmp_path, digits):
    """The scores lie where others lay, so that all options are the same."""
    given = {"dataset": "digits", "selector": "keep_max", "size": 5, "scores": tmp_path / "s.npy", "offline": "true"}
    np.save(tmp_path / "s.npy", np.arange(digits.num_examples, dtype=np.float32))
    datadiet("select", tmp_path, **given)
    (kept,) = tmp_path.glob("exps/select/*/run_0/kept.csv")
    first = kept.read_text()
    datadiet("select", tmp_path, **given)
    assert kept.read_text() == first, "the same again"
    np.save(tmp_path / "s.npy", -np.arange(digits.num_examples, dtype=np.float32))
    told = datadiet("select", tmp_path, expect=2, **given).output
    assert "keeps other examples, or by other scores, than these options do now" in told
    assert "Replace it with --overwrite true, or choose another --exp NAME." in told
    assert kept.read_text() == first
    datadiet("select", tmp_path, overwrite="true", **given)
    assert kept.read_text() != first


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


@pytest.fixture
def numbered(tmp_path):
    """Forty examples whose names are whole numbers, in another order; and those, canonical."""
    names, images = np.random.RandomState(0).permutation(40), np.zeros((46, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(46)
    labels = np.arange(46) % 2
    given = {"x_train": images[:40], "y_train": labels[:40], "x_test": images[40:], "y_test": labels[40:]}
    np.savez(tmp_path / "numbered.npz", **given, ids_train=names)
    return load_dataset(f"npz:{tmp_path / 'numbered.npz'}"), names


def test_whole_numbers_that_are_names_and_positions_are_not_guessed(tmp_path, numbered):
    """As csv they are names, for its cells are text."""
    dataset, names = numbered
    score = np.arange(40) / 2
    for column, expected in (("example_id", names / 2), ("index", score)):
        frame = pd.DataFrame({column: np.arange(40), "score": score})
        frame.to_csv(tmp_path / "s.csv", index=False)
        frame.to_parquet(tmp_path / "s.parquet")
        np.testing.assert_array_equal(read_score_table(tmp_path / "s.csv", dataset), expected)
        if column == "index":
            np.testing.assert_array_equal(read_score_table(tmp_path / "s.parquet", dataset), expected)
        else:
            with pytest.raises(UserError, match="name of one example of .* and the position of another: .*index"):
                read_score_table(tmp_path / "s.parquet", dataset)
    known, obstacles = rows_of(np.arange(100, 140), dataset, positions=True)
    assert (known.size, len(obstacles)) == (0, 2)


def test_whole_numbers_that_are_names_alone_are_names(tmp_path, numbered):
    dataset, names = numbered
    data = replace(dataset, example_ids=np.array([str(name + 1000) for name in names]))
    known, obstacles = rows_of(np.arange(1000, 1040), data)
    assert not obstacles
    np.testing.assert_array_equal(names[known], np.arange(40))


def test_a_column_of_another_name_is_taken_and_told_unless_its_name_says_that_it_is_no_score(tmp_path, digits, scores):
    given = scores[["example_id", "score"]]
    given.rename(columns={"score": "el2n"}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.warns(UserWarning, match="column el2n is taken for the score; larger is harder"):
        read_score_table(tmp_path / "a.csv", digits)
    given.rename(columns={"score": "rank"}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(UserError, match="its only column beside example_id is rank; expected one that is called score"):
        read_score_table(tmp_path / "b.csv", digits)
