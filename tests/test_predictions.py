"""Outputs that a program saved give the scores that it would have been given while it ran, or are refused."""

from __future__ import annotations

import mlflow
import numpy as np
import oracles
import pandas as pd
import pytest
from conftest import datadiet

import datadiet as dd
from datadiet.data.registry import load_dataset
from datadiet.runs.outputs import find_outputs
from datadiet.storage.score_files import load_scores

T = 4
OFFLINE = {"dataset": "digits", "offline": True}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def logits(digits) -> np.ndarray:
    """float32 [R, T, N, C]."""
    return np.random.RandomState(0).normal(0, 2, (2, T, digits.num_examples, 10)).astype(np.float32)


def test_runs_of_files_are_scored_averaged_tracked_and_chosen_by(tmp_path, digits, logits):
    paths = [str(tmp_path / f"{run}.npy") for run in range(2)]
    for path, of_run in zip(paths, logits):
        np.save(path, of_run[0])
    done = datadiet("predictions", tmp_path, files=",".join(paths), step=70, type="l2_error,entropy", dataset="digits")
    assert "Of a checkpoint: l2_error, entropy." in done.output
    exps, own = tmp_path / "exps", "error_l2_norm_scores/ckpt_70.npy"
    expected = [oracles.LOGIT_SCORES["l2_error"](of_run[0], digits.train_labels) for of_run in logits]
    for run in range(2):
        values, record = load_scores(exps / "predictions" / f"run_{run}" / own, f"predictions/run_{run}/{own}")
        np.testing.assert_allclose(values, expected[run], rtol=1e-4)
        assert record is not None
        assert (record.type, record.step, record.runs, record.fingerprint) == (
            "l2_error",
            70,
            [run],
            digits.fingerprint,
        )
    mean = exps / "predictions" / own
    np.testing.assert_allclose(load_scores(mean)[0], np.mean(expected, axis=0), rtol=1e-4)
    assert f"datadiet select --selector keep_max --size 50% --scores {mean.relative_to(tmp_path)}" in done.output
    datadiet("select", tmp_path, selector="keep_max", size=200, scores=mean, dataset="digits", offline=True)
    kept = pd.read_csv(exps / "select/size_200.keep_max/run_0/kept.csv")
    assert set(kept.example_id) == set(digits.example_ids[np.argsort(-np.mean(expected, axis=0))[:200]])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("datadiet")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    kinds = sorted(run.data.tags["datadiet.kind"] for run in runs)
    assert kinds == ["mean_score"] * 2 + ["predictions"] + ["score"] * 4
    assert len({run.data.tags.get("mlflow.parentRunId") for run in runs}) == 2, "all are parts of one"
    datadiet("mean_score", tmp_path, score_exp="predictions", n_runs=2, step=70, combine="rank_mean", offline=True)


def test_files_of_epochs_give_what_a_recorder_would_have(tmp_path, digits, logits):
    """Whatever the order of rows, where ids tell it; a folder of files is an array of epochs."""
    order = np.random.RandomState(1).permutation(digits.num_examples)
    for epoch in range(T):
        folder = tmp_path / "epochs"
        folder.mkdir(exist_ok=True)
        given = {"logits": logits[0, epoch][order], "ids": digits.example_ids[order]}
        np.savez(folder / f"epoch_{epoch + 8}.npz", **given, labels=digits.train_labels[order])  # 10 behind 9
    np.save(tmp_path / "whole.npy", logits[0])
    recorder = dd.Recorder(digits.num_examples, 10, ("forget", "aum", "dyn_unc"), trajectory_window=3)
    for of_epoch in logits[0]:
        recorder.update(np.arange(digits.num_examples), of_epoch, digits.train_labels)
    for exp, files in (("a", tmp_path / "epochs"), ("b", tmp_path / "whole.npy")):
        given = OFFLINE | {"type": "forget,aum,dyn_unc", "step": 9, "trajectory_window": 3, "exp": exp}
        done = datadiet("predictions", tmp_path, files=files, **given)
        assert (
            "Gathered while training: forget, aum, dyn_unc, one look at each example for each of 4 epochs"
            in done.output
        )
        for kind in recorder.scores:
            values, _ = load_scores(tmp_path / "exps" / exp / f"run_0/{kind}_scores/ckpt_9.npy")
            np.testing.assert_array_equal(values, recorder.values(kind))
    told = datadiet("predictions", tmp_path, files=tmp_path / "whole.npy", step=9, expect=2, **OFFLINE).output
    assert "has 4 epochs, and l2_error is of one: say which by --epoch 4" in told
    datadiet("predictions", tmp_path, files=tmp_path / "whole.npy", step=9, epoch=2, **OFFLINE)
    values, _ = load_scores(tmp_path / "exps/predictions/run_0/error_l2_norm_scores/ckpt_9.npy")
    np.testing.assert_array_equal(values, dd.scores_from_logits("l2_error", logits[0, 1], digits.train_labels))
    told = datadiet("predictions", tmp_path, files=tmp_path / "whole.npy", step=9, epoch=3, expect=2, **OFFLINE).output
    assert "holds other scores (source: outputs, sha256" in told, "of another epoch"


def test_files_are_ordered_by_numbers_alone(tmp_path):
    """² is a digit to Unicode, and no number."""
    names = ("epoch_9²1.npy", "epoch_9²2.npy", "epoch_10²1.npy")
    for name in reversed(names):
        np.save(tmp_path / name, np.zeros((2, 2)))
    (found,) = find_outputs([str(tmp_path)], probabilities=False)
    assert [file.name for file in found.files] == list(names)


def test_probabilities_of_parquet_count_only_where_they_are_said_to_be(tmp_path, digits, logits):
    odds = np.array(oracles.softmax(logits[0, 0]))
    frame = pd.DataFrame({f"p{c}": odds[:, c] for c in range(10)} | {"example_id": digits.example_ids.astype(str)})
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "p.parquet")
    given = OFFLINE | {"files": tmp_path / "p.parquet", "step": 3}
    told = datadiet("predictions", tmp_path, expect=2, **given).output
    assert "these look like probabilities: say so by --probabilities true" in told
    datadiet("predictions", tmp_path, probabilities=True, **given)
    values, _ = load_scores(tmp_path / "exps/predictions/run_0/error_l2_norm_scores/ckpt_3.npy")
    np.testing.assert_allclose(values, dd.scores_from_logits("l2_error", logits[0, 0], digits.train_labels), rtol=1e-3)


def test_all_that_stands_in_the_way_of_all_files_is_named_at_once(tmp_path, digits, logits):
    bad = logits[0, 0].copy()
    bad[5] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    np.save(tmp_path / "short.npy", logits[0, 0, :-1])
    np.save(tmp_path / "classes.npy", logits[0, 0, :, :9])
    np.save(tmp_path / "flat.npy", logits[0, 0, :, 0])
    ids = digits.example_ids.astype(str)
    ids[0] = "gone"
    np.savez(tmp_path / "ids.npz", logits=logits[0, 0], ids=ids)
    np.savez(tmp_path / "labels.npz", logits=logits[0, 0], labels=(digits.train_labels + 1) % 10)
    np.savez(tmp_path / "two.npz", logits=logits[0, 0], probabilities=logits[0, 0])
    names = ("nan.npy", "short.npy", "classes.npy", "flat.npy", "ids.npz", "labels.npz", "two.npz")
    files = ",".join(str(tmp_path / name) for name in names)
    told = datadiet("predictions", tmp_path, files=files, step=1, expect=2, **OFFLINE).output
    for part in (
        "nan.npy: logits: 1 of 1438 rows are not finite, the first of them row 5",
        "short.npy: 1437 rows; digits has 1438 training examples",
        "classes.npy: logits have the shape [1438, 9]",
        "flat.npy: outputs of shape [1438]",
        "ids.npz: 1 of 1438 ids are not of digits: gone",
        "labels.npz: 1438 of 1438 labels are not those of digits",
        "two.npz: expected logits or probabilities under that name",
    ):
        assert part in told, part
    assert not (tmp_path / "exps").exists()
    told = datadiet("predictions", tmp_path, files="none/*.npy,gone.npy", step=1, expect=2, **OFFLINE).output
    assert "files=none/*.npy,gone.npy: no files of outputs" in told
    told = datadiet("predictions", tmp_path, files=tmp_path / "nan.npy", step=1, type="grad_norm", expect=2, **OFFLINE)
    assert "type=grad_norm: expected some of l2_error" in told.output


def test_outputs_that_do_not_tell_their_order_say_how_many_are_right(tmp_path, digits):
    right = 5 * np.eye(10, dtype=np.float32)[digits.train_labels]
    given = {"step": 70, "offline": True, "dataset": "digits", "overwrite": True}
    for order, told in (
        (slice(None), "100.0% are right."),
        (np.random.RandomState(0).permutation(len(right)), "by chance"),
    ):
        np.save(tmp_path / "a.npy", right[order])
        done = datadiet("predictions", tmp_path, files=tmp_path / "a.npy", **given)
        assert "a.npy: neither ids nor labels, so its rows are taken to be in the order of digits" in done.output
        assert told in done.output
    np.savez(tmp_path / "b.npz", logits=right, ids=digits.example_ids)
    assert "neither ids" not in datadiet("predictions", tmp_path, files=tmp_path / "b.npz", **given).output
