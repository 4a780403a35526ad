"""Trainings of others decide as those of a study do, whatever form their results have, or all obstacles are named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import datadiet

import datadiet as dd
from datadiet.data.registry import load_dataset
from datadiet.report.comparison import compare_accuracies
from datadiet.report.given import read_study
from datadiet.storage.records import StudyRecord
from datadiet.storage.tables import csv_text

S, M, N = 4, 600, 1438  # runs, test examples, and training examples of digits
NAME = "<script>mine, 'all'"  # an arm as people may call it
SHARES = {("everything", 1.0): 0.93, (NAME, 0.5): 0.93, (NAME, 0.25): 0.7, ("random", 0.5): 0.8}


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, float], np.ndarray]:
    """bool [S, M] by arm and fraction: difficult examples are those of all runs, with some chance."""
    random = np.random.RandomState(0)
    difficulty = random.rand(M)
    return {key: difficulty + 0.01 * random.normal(size=(S, M)) < share for key, share in SHARES.items()}


def write_table(path: Path, rows: list[tuple], *columns: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def table_of(folder: Path, answers, runs: int = S) -> Path:
    """A csv with a file for each training."""
    rows = []
    for cell, ((arm, fraction), correct) in enumerate(answers.items()):
        for run in range(runs):
            rows.append((arm, fraction, f"seed {run + 7}", f"{cell}_{run}.npy"))
            folder.mkdir(exist_ok=True)
            np.save(folder / rows[-1][-1], correct[run])
    return write_table(folder / "results.csv", rows, "arm", "fraction", "run", "file")


def decided(root: Path, exp: str = "decide") -> dict:
    return json.loads((root / "exps" / exp / "statistics.json").read_text())


def test_it_decides_as_the_public_function_and_writes_the_report_of_a_study(tmp_path, answers):
    digits = load_dataset("digits")
    half = sorted(np.random.RandomState(1).permutation(N)[: N // 2])
    (tmp_path / "own").mkdir()
    lines = csv_text(["example_id"], ([digits.example_ids[i]] for i in half))
    (tmp_path / "own" / "half.csv").write_text(lines)
    rows = []
    for (arm, fraction), correct in answers.items():
        np.save(tmp_path / "own" / f"{len(rows)}.npy", correct)
        rows.append((arm, f"{fraction:.0%}", f"{len(rows)}.npy", "half.csv" if (arm, fraction) == (NAME, 0.5) else ""))
    table = write_table(tmp_path / "own" / "results.csv", rows, "Arm", "Fraction", "File", "Kept")
    done = datadiet("decide", tmp_path, results=table, margin=2, dataset="digits", model="my net")
    cells = {(arm if f < 1 else "full data", f): correct for (arm, f), correct in answers.items()}
    expected, found = dd.decide(cells, margin=0.02), decided(tmp_path)
    assert expected.answer == "can"
    assert (found["answer"], found["arm"], found["kept_fraction"]) == ("can", NAME, 0.5)
    assert found["smallest_margin"] == pytest.approx(100 * expected.comparisons[NAME, 0.5].smallest_margin)
    assert found["gain"]["over_random"] == pytest.approx(expected.gain)
    for cell in found["cells"][1:]:
        one = expected.comparisons[cell["arm"], round(cell["fraction"], 2)]
        assert cell["minus_full"]["low"] == pytest.approx(one.low)
        assert cell["verdict"] == expected.of(cell["arm"], round(cell["fraction"], 2))
    assert "50 % of the training examples can be dropped" in done.output
    page = (tmp_path / "exps/decide/report.html").read_text()
    assert "How much of digits can my net do without?" in page
    assert "<script" not in page
    assert "&lt;script&gt;mine" in page
    assert "what was tried and is not in the table is not counted" in page
    (kept,) = (tmp_path / "exps/decide/kept").glob("*.parquet")
    assert pd.read_parquet(kept).query("kept")["index"].tolist() == half
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("datadiet").experiment_id])  # type: ignore[union-attr]
    assert (run.data.tags["datadiet.kind"], run.data.metrics["decision/kept_fraction"]) == ("decide", 0.5)
    assert {"report.html", "statistics.json", "kept"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
    again = datadiet("report", tmp_path, exp="decide", format="json", margin=0.1)
    assert json.loads(again.output)["answer"] == "not decided"


@pytest.fixture
def drawn(monkeypatch) -> None:
    """No pictures, which take most of the time."""
    monkeypatch.setattr("datadiet.report.page.pictures", lambda decision: [])


def npz_of(path: Path, answers, **arrays) -> Path:
    keys = [key for key in answers for _ in range(S)]
    told = {"arm": [arm for arm, _ in keys], "fraction": [f for _, f in keys], "run": list(range(S)) * len(answers)}
    np.savez(path, **told, **arrays)
    return path


def test_every_form_of_the_same_results_is_the_same(tmp_path, answers, drawn):
    joined = np.concatenate(list(answers.values()))
    labels = np.random.RandomState(2).randint(0, 10, M)
    predicted = np.where(joined, labels, (labels + 1) % 10)
    frame = {"arm": np.repeat([arm for arm, _ in answers], S), "size": np.repeat([f * 1000 for _, f in answers], S)}
    frame |= {"run": np.tile(np.arange(S), len(answers)), "correct": list(joined)}
    pd.DataFrame(frame).astype({"size": int}).to_parquet(tmp_path / "p.parquet")
    del frame["correct"]
    told = pd.DataFrame(frame | {"predicted": list(predicted), "labels": [labels] * len(predicted)})
    told.astype({"size": int}).to_parquet(tmp_path / "l.parquet")
    forms = {
        "files": table_of(tmp_path / "files", answers),
        "correct": npz_of(tmp_path / "c.npz", answers, correct=joined),
        "predicted": npz_of(tmp_path / "l.npz", answers, predicted=predicted, labels=labels),
        "parquet": tmp_path / "p.parquet",
        "predicted_parquet": tmp_path / "l.parquet",
    }
    found = []
    for exp, table in forms.items():
        datadiet("decide", tmp_path, results=table, margin=2, exp=exp, offline=True, num_examples=1000)
        study = read_study(tmp_path / "exps", exp)
        assert [(c.arm, c.fraction) for c in study.cells] == [("full data", 1.0), *list(answers)[1:]]
        for cell, correct in zip(study.cells, answers.values()):
            np.testing.assert_array_equal(cell.correct, correct)
        if exp.startswith("predicted"):
            per_class = [answers["everything", 1.0][:, labels == c].mean(1) for c in range(10)]
            np.testing.assert_allclose(study.full.per_class, np.transpose(per_class))
        found.append([cell["minus_full"] for cell in decided(tmp_path, exp)["cells"]])
    assert found[0] == found[1] == found[2] == found[3] == found[4]
    told.assign(labels=[labels, *[9 - labels] * (len(predicted) - 1)]).to_parquet(path := tmp_path / "other.parquet")
    refused = datadiet("decide", tmp_path, results=path, num_examples=1000, offline=True, expect=2).output
    assert "row 1: other labels of test examples than before; expected the same test set everywhere" in refused


def test_accuracies_alone_give_a_bound_that_is_told(tmp_path, answers, drawn):
    rows = [
        (arm, fraction, run, correct[run].mean(), 10 * fraction + run / 100)
        for (arm, fraction), correct in answers.items()
        for run in range(S)
    ]
    table = write_table(tmp_path / "results.csv", rows, "arm", "fraction", "run", "accuracy", "seconds")
    given = {"results": table, "margin": 2, "num_examples": 1000, "offline": True}
    datadiet("decide", tmp_path, num_test=M, **given)
    full, half = (answers[key].mean(axis=1) for key in (("everything", 1.0), (NAME, 0.5)))
    expected, found = compare_accuracies(half, full, M, 0.02), decided(tmp_path)
    (cell,) = [cell for cell in found["cells"] if (cell["arm"], cell["fraction"]) == (NAME, 0.5)]
    assert cell["minus_full"]["low"] == pytest.approx(expected.low)
    assert expected.low < dd.compare(answers[NAME, 0.5], answers["everything", 1.0]).low
    page = (tmp_path / "exps/decide/report.html").read_text()
    assert "Only accuracies were given, not which test examples are right" in page
    assert "on the subset, 10 s on all of the data, as was told" in page
    assert found["cost"]["total"] is None, "the choice had a price that nobody told"


def test_all_that_stands_in_the_way_is_named_at_once(tmp_path, answers):
    np.save(tmp_path / "short.npy", np.ones(M - 1, bool))
    np.save(tmp_path / "classes.npy", np.arange(M) % 10)
    rows = [
        ("mine", 0.5, 0, "short.npy", ""), ("mine", 0.5, 0, "short.npy", ""), ("mine", 0.4, 1, "gone.npy", ""),
        ("mi\x1b[1mne", 0.4, 0, "classes.npy", ""), ("mi ne", 1.5, 0, "", 91.2), ("mi_ne", 0.3, "", "", 0.9),
    ]  # fmt: skip
    table = write_table(tmp_path / "results.csv", rows, "arm", "fraction", "run", "file", "accuracy")
    text = datadiet("decide", tmp_path, results=table, num_examples=1000, offline=True, expect=2).output
    for part in (
        "line 3: run 0 of mine at 0.5 again, as in line 2",
        "gone.npy: no such file",
        "expected text without control characters",
        "line 5: answers are int64, and others than 0 and 1",
        "line 6: fraction=1.5; expected a number above 0, up to 1",
        "line 6: accuracy=91.2; expected a number from 0 to 1 (per cent divided by 100)",
        "line 7: no run",
        "no training on all of the data",
        "mi ne and mi_ne are the same in names of files",
        "only an accuracy, where others have answers",
    ):
        assert part in text, part
    assert "\x1b" not in text
    assert not (tmp_path / "exps").exists()


def test_chance_is_known_however_it_is_written(tmp_path, answers, drawn):
    """No arm is kept by that is not shown to be better than chance."""
    full, by_chance = answers["everything", 1.0], answers["everything", 1.0].copy()
    by_chance[0, np.flatnonzero(full[0])[:2]] = False  # a hair worse than the other
    told = []
    for name in ("random", "RANDOM"):
        cells = {("everything", 1.0): full, (name, 0.5): by_chance, ("mine", 0.5): full}
        given = {"margin": 5, "num_examples": 1000, "offline": True, "exp": name}
        done = datadiet(
            "decide",
            tmp_path,
            results=npz_of(tmp_path / f"{name}.npz", cells, correct=np.concatenate([*cells.values()])),
            **given,
        )
        told.append(decided(tmp_path, name))
    assert "RANDOM is read as random" in done.output
    assert [(one["answer"], one["arm"]) for one in told] == [("can", "random")] * 2
    assert told[0]["gain"] == told[1]["gain"]


def test_runs_may_be_called_as_people_like(tmp_path, drawn):
    """Also by what Unicode takes for a digit and is no number."""
    rows = [(arm, f, run, 0.9) for arm, f in (("all", 1), ("mine", 0.5)) for run in ("²", "10", "9", "a", "１")]
    table = write_table(tmp_path / "results.csv", rows, "arm", "fraction", "run", "accuracy")
    datadiet("decide", tmp_path, results=table, offline=True, num_test=M, num_examples=N)
    runs = read_study(tmp_path / "exps", "decide").record.cells[0].runs
    assert [run.rsplit("/", 1)[1] for run in runs] == ["１", "9", "10", "a", "²"]


def test_a_run_that_has_no_pair_is_refused(tmp_path, answers):
    rows = [("all", 1, run, 0.9) for run in (1, 2, 10)] + [("mine", 0.5, run, 0.9) for run in (1, 2, 3)]
    table = write_table(tmp_path / "results.csv", rows, "arm", "fraction", "run", "accuracy")
    told = datadiet("decide", tmp_path, results=table, offline=True, expect=2).output
    assert "mine at 0.5 has the runs 1, 2, 3, full data 1, 2, 10: expected the same" in told
    assert "expected --num_test M" in told
    assert "--num_examples N, or --dataset NAME" in told


def test_looking_again_after_more_runs_is_paid_for_and_others_are_refused(tmp_path, answers, drawn):
    given = {"margin": 2, "num_examples": 1000, "offline": True}
    datadiet("decide", tmp_path, results=table_of(tmp_path / "two", answers, runs=2), **given)
    datadiet("decide", tmp_path, results=table_of(tmp_path / "four", answers), **given)
    found = decided(tmp_path)["looks"]
    assert (found["runs"], found["planned"]) == ([2, 4], 2)
    cells = {(arm if f < 1 else "full data", f): correct for (arm, f), correct in answers.items()}
    expected = dd.decide(cells, margin=0.02, looked=(2,), planned=2)
    assert decided(tmp_path)["kept_fraction"] == expected.kept_fraction
    fewer = datadiet("decide", tmp_path, results=table_of(tmp_path / "three", answers, runs=3), expect=2, **given)
    assert "whoever looks at fewer afterwards chooses the answer" in fewer.output
    others = {key: correct[::-1] for key, correct in answers.items()}
    told = datadiet("decide", tmp_path, results=table_of(tmp_path / "others", others), expect=2, **given).output
    assert "has what other trainings decided. Choose another --exp NAME" in told
    file = tmp_path / "exps/decide/evaluations.npz"
    assert [path.name for path in file.parent.glob("evaluations*")] == [file.name]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "its hash differs" in datadiet("report", tmp_path, exp="decide", expect=2).output


def test_killed_while_it_replaces_a_decision_it_can_be_repeated(tmp_path, answers, drawn, monkeypatch):
    given = {"margin": 2, "num_examples": 1000, "offline": True}
    two, three, four = (table_of(tmp_path / f"{runs}", answers, runs=runs) for runs in (2, 3, 4))
    datadiet("decide", tmp_path, results=two, **given)

    def die(record, path) -> None:
        raise RuntimeError("killed")

    for results in (three, four):
        with monkeypatch.context() as patch:
            patch.setattr(StudyRecord, "write", die)
            with pytest.raises(RuntimeError):
                datadiet("decide", tmp_path, results=results, **given)
        assert read_study(tmp_path / "exps", "decide").full.accuracies.size == 2
    datadiet("decide", tmp_path, results=four, **given)
    assert decided(tmp_path)["looks"]["runs"] == [2, 4]
    assert [path.name for path in (tmp_path / "exps/decide").glob("evaluations*")] == ["evaluations.npz"]
