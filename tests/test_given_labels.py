"""labels=FILE: other labels than the data's own are trained on, and the data's own tell which scores find them."""

import json

import numpy as np
import pytest
import studies
from archives import png
from conftest import datadiet

import datadiet as dd
from datadiet.errors import UserError
from datadiet.report.decision import Decision, noise_audit
from datadiet.report.given import read_study
from datadiet.report.page import html, numbers
from datadiet.report.text import warnings
from datadiet.runs.context import Output
from datadiet.runs.labels import labels_for
from datadiet.storage.layout import ExperimentLayout
from datadiet.storage.records import Arguments, DataFacts
from datadiet.storage.tables import csv_text, read_csv
from datadiet.study.plan import Plan
from datadiet.study.spec import compile_study
from datadiet.study.study import check

NAMES = ("ant", "bee", "cat")
TRAINING = {"model": "mlp", "width": 8, "num_steps": 8, "save_steps": 8, "augment": "false", "offline": "true"}

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three classes, 20 and 5 of each."""
    random, root = np.random.RandomState(0), tmp_path_factory.mktemp("data")
    for split, count in (("train", 20), ("test", 5)):
        for label in NAMES:
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 90, (4, 4, 3)) + 80 * NAMES.index(label) * (np.arange(3) == 1)
                (root / split / label / f"{i:02}.png").write_bytes(png(pixels.astype(np.uint8)))
    return root


@pytest.fixture(scope="module")
def own(folder):
    return dd.load_dataset(f"folder:{folder}")


@pytest.fixture
def swapped(own):
    """Every seventh label is the next class's."""
    labels = np.array(own.train_labels)
    labels[::7] = (labels[::7] + 1) % 3
    return labels


def table(path, own, labels, spelled=NAMES.__getitem__, header=("example_id", "label")):
    path.write_text(csv_text(header, ((one, spelled(label)) for one, label in zip(own.example_ids, labels.tolist()))))
    return path


@pytest.mark.parametrize("spelled", [NAMES.__getitem__, int, float], ids=["names", "numbers", "floats"])
def test_labels_are_names_or_numbers_of_classes_in_any_order(tmp_path, folder, own, swapped, spelled):
    path = table(tmp_path / "labels.csv", own, swapped, spelled)
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]))
    dataset = dd.load_dataset(f"folder:{folder}", labels=str(path))
    assert np.array_equal(dataset.train_labels, swapped)
    assert np.array_equal(dataset.test_labels, own.test_labels)
    assert dataset.fingerprint == own.fingerprint


def test_tables_of_other_programs_are_read(tmp_path, folder, own, swapped):
    rows = [(one, NAMES[label]) for one, label in zip(own.example_ids, swapped)]
    (tmp_path / "labels.csv").write_bytes(
        ("\ufeffFile Name;Class\r\n" + "".join(f"{a};{b}\r\n" for a, b in rows)).encode()
    )
    dataset = dd.load_dataset(f"folder:{folder}", labels=str(tmp_path / "labels.csv"))
    assert np.array_equal(dataset.train_labels, swapped)


def test_a_column_class_has_names_also_where_these_are_numbers(tmp_path):
    images, labels = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1), np.array([10, 1, 2])
    with pytest.warns(UserWarning, match="renumbered"):
        dataset = dd.dataset_from((images, labels), (255 - images, labels), ids=["=a", "-b", "c"])
    assert dataset.class_names == ("1", "2", "10")
    from datadiet.data.labels import given_labels

    path = tmp_path / "labels.csv"
    for header, rows in ((("example_id", "label"), (("=a", 1), ("-b", 2), ("c", 10))),
                         (("example_id", "label", "class"), (("=a", 0, 1), ("-b", 1, 2), ("c", 2, 10)))):  # fmt: skip
        path.write_text(csv_text(header, rows))
        assert given_labels(path, dataset).tolist() == [0, 1, 2]
    path.write_text(csv_text(("example_id", "label"), (("=a", 1), ("-b", 2), ("c", 2))))
    with pytest.raises(UserError, match="may be names .1, 2, 10. or numbers .0 to 2., which differ"):
        given_labels(path, dataset)


def test_a_misspelt_name_is_refused_though_numbers_stand_beside_it(tmp_path, folder, own, swapped):
    """Those may be the labels that there were before."""
    names = [NAMES[label] for label in swapped]
    names[3] = "Ant"
    rows = zip(own.example_ids, own.train_labels.tolist(), names)
    (tmp_path / "labels.csv").write_text(csv_text(("example_id", "label", "class"), rows))
    with pytest.raises(UserError, match="- 1 labels are of no class: Ant; expected ant, bee, cat"):
        dd.load_dataset(f"folder:{folder}", labels=str(tmp_path / "labels.csv"))


def test_only_labels_of_no_class_are_told_as_such(tmp_path):
    """Not those that a table spells harmlessly."""
    for split in ("train", "test"):
        for label in ("=1", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "0.png").write_bytes(png(np.eye(4, dtype=np.uint8)[..., None].repeat(3, 2)))
    rows = [("=1/0.png", "=1"), ("b/0.png", "c")]
    (tmp_path / "labels.csv").write_text(csv_text(("example_id", "class"), rows))
    with pytest.raises(UserError, match="- 1 labels are of no class: c; expected =1, b"):
        dd.load_dataset(f"folder:{tmp_path}", labels=str(tmp_path / "labels.csv"))


def test_all_obstacles_are_named_at_once(tmp_path, folder, own):
    rows = [*((one, "ant") for one in own.example_ids[2:]), ("cow/1.png", "ant"), (own.example_ids[5], "cow"), ("", "")]
    (tmp_path / "labels.csv").write_text(csv_text(("example_id", "label"), rows))
    with pytest.raises(UserError) as caught:
        dd.load_dataset(f"folder:{folder}", labels=str(tmp_path / "labels.csv"))
    for part in (
        f"1 of 60 ids are not of folder:{folder}: cow/1.png", "2 of 60 training examples have no label: ant/00.png",
        "1 training examples are named several times: ant/05.png",
        "1 labels are of no class: cow; expected ant, bee, cat",
    ):  # fmt: skip
        assert part in str(caught.value), part
    (tmp_path / "labels.csv").write_text("example_id,label\nant/00.png,\n")
    with pytest.raises(UserError, match="1 rows have no label"):
        dd.load_dataset(f"folder:{folder}", labels=str(tmp_path / "labels.csv"))
    with pytest.raises(UserError, match=r"none\.csv.*cannot be read"):
        dd.load_dataset(f"folder:{folder}", labels="none.csv")


def test_labels_are_given_or_drawn_anew(tmp_path):
    (tmp_path / "x.csv").write_text("example_id,label\n")
    told = datadiet("full_data", tmp_path, 2, dataset="digits", labels="x.csv", random_label_fraction=0.1, **TRAINING)
    assert "labels=x.csv: expected no such where random_label_fraction=0.1" in told.output


def test_a_run_trains_on_given_labels_and_is_tested_on_the_datas_own(tmp_path, folder, own, swapped):
    path = table(tmp_path / "labels.csv", own, swapped)
    given = {"dataset": f"folder:{folder}", "labels": path, **TRAINING}
    datadiet("full_data", tmp_path, **given)
    run = tmp_path / "exps/full_data/run_0"
    assert json.loads((run / "args.json").read_text())["labels"] == str(path)
    rows = read_csv(run / "given_labels.csv", "example_id", "id", "label", "given_label")
    assert [int(row["id"]) for row in rows] == np.flatnonzero(swapped != own.train_labels).tolist()
    assert [int(row["given_label"]) for row in rows] == swapped[swapped != own.train_labels].tolist()
    assert json.loads((run / "summary.json").read_text())["kept_per_class"] == np.bincount(swapped).tolist()
    plain = {**given, "labels": "auto", "exp": "plain"}
    datadiet("full_data", tmp_path, **plain)
    other = tmp_path / "exps/plain/run_0"
    weights = [np.load(one / "ckpts/8/arrays.npz") for one in (run, other)]
    assert any(not np.array_equal(weights[0][name], weights[1][name]) for name in weights[0].files)

    datadiet("score", tmp_path, step=8, offline="true")
    record = json.loads((run / "error_l2_norm_scores/ckpt_8.json").read_text())
    assert (
        record["given_labels"]
        == json.loads((run / "args.json").read_text())["data"]["made_as"]["inputs"]["given_labels.csv"]
    )
    dataset, stored = dd.load_dataset(f"folder:{folder}"), dd.open_run(run)
    probabilities = np.asarray(stored.logits(dataset.train_images, 8))
    probabilities = np.exp(probabilities - probabilities.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = np.linalg.norm(probabilities - np.eye(3)[swapped], axis=1)
    np.testing.assert_allclose(np.load(run / "error_l2_norm_scores/ckpt_8.npy"), expected, atol=1e-4)

    gathered = json.loads((run / "forget_scores/ckpt_8.json").read_text())
    assert gathered["given_labels"] == record["given_labels"]

    path.unlink()  # the run has its own
    datadiet("score", tmp_path, step=0, offline="true")
    told = datadiet("full_data", tmp_path, 2, **given, resume="true")
    assert "expected a csv file with example_id and label" in told.output


def test_scores_of_runs_with_other_labels_are_not_averaged(tmp_path, folder):
    given = {"dataset": f"folder:{folder}", **TRAINING}
    for run, fraction in enumerate((0.5, 0.5, 0)):
        datadiet("full_data", tmp_path, run=run, random_label_fraction=fraction, **given)
    for kind in ("forget", "l2_error"):
        if kind == "l2_error":
            datadiet("score", tmp_path, runs="0-2", step=8, offline="true")
        of_kind = {"type": kind, "step": 8, "offline": "true"}
        told = " ".join(datadiet("mean_score", tmp_path, 2, n_runs=3, **of_kind).stderr.split())
        assert "random_labels: {'fraction': 0.5, 'seed': 0} in run 0, None in run 2" in told
        assert "average those before it: datadiet mean_score --n_runs 2" in told
        datadiet("mean_score", tmp_path, n_runs=2, **of_kind)


def test_a_changed_file_of_labels_is_noticed(tmp_path, folder, own, swapped):
    path = table(tmp_path / "labels.csv", own, swapped)
    given = {"dataset": f"folder:{folder}", "labels": path, **TRAINING}
    datadiet("full_data", tmp_path, **given)
    table(path, own, swapped, lambda c: c)  # the same labels
    datadiet("full_data", tmp_path, **given, resume="true")
    table(path, own, np.roll(swapped, 1))
    told = datadiet("full_data", tmp_path, 2, **given, resume="true")
    assert "given_labels.csv has other lines" in told.output
    told = datadiet("full_data", tmp_path, 2, **{**given, "labels": "auto"}, resume="true")
    assert f"labels: {path} there, None asked for" in told.output
    chosen = {"selector": "random", "size": 9, "dataset": f"folder:{folder}", "labels": path, "offline": "true"}
    datadiet("select", tmp_path, **chosen)
    datadiet("select", tmp_path, **chosen)
    table(path, own, swapped)
    assert "holds other scores (labels_sha256" in datadiet("select", tmp_path, 2, **chosen).output
    told = datadiet("select", tmp_path, 2, **{**chosen, "labels": "auto"}).output
    assert f"labels: {path} there, None asked for" in told


def test_the_audit_tells_which_scores_find_the_labels_that_are_not_the_datas_own(tmp_path):
    """A study of labels that were drawn anew, and the same one of labels that were given."""
    exps = studies.write_study(tmp_path, {"keep_max l2_error": (0.001, 0.08), "random": (0.01, 0.05)}, noise=0.1)
    drawn = read_study(exps, "demo")
    known, noise, own_labels = noise_audit(drawn), drawn.noise, dd.load_dataset("digits").train_labels
    assert noise is not None
    rows = ((i, noise.labels[i]) for i in np.flatnonzero(noise.changed))
    first = exps / drawn.full.paths[0]
    studies.rewrite(first / "args.json", random_label_fraction=0.0, labels="mine.csv")
    (first / "given_labels.csv").write_text(csv_text(("id", "given_label"), rows))
    study = read_study(exps, "demo")
    audit = noise_audit(study)
    assert audit == known
    changed, values = noise.labels != own_labels, study.scores[0].mean
    found = audit[0]
    assert found["k"] == changed.sum() > 100
    assert found["auroc"] == pytest.approx((values[changed][:, None] > values[~changed]).mean())
    assert found["auroc"] > 0.8
    assert found["precision"] == pytest.approx(changed[np.argsort(values)[-changed.sum() :]].mean())
    decision = Decision(study, 0.5)
    count = f"{changed.sum()} of 1,438 training labels are other than the data's own (mine.csv)"
    assert any(count in text for text in warnings(decision))
    assert f"{changed.sum()} training labels differ from the data's own" in html(decision, [], [])
    assert numbers(decision)["noise_audit"] == audit
    rows = [(10**6, 1)]
    (first / "given_labels.csv").write_text(csv_text(("id", "given_label"), rows))
    with pytest.raises(UserError, match=r"given_labels\.csv is not of this data"):
        noise_audit(read_study(exps, "demo"))


def test_a_study_notices_labels_that_have_changed_before_it_trains(tmp_path, folder, own, swapped):
    path, layout = table(tmp_path / "labels.csv", own, swapped), ExperimentLayout(tmp_path)
    config = dd.TrainConfig(dataset=f"folder:{folder}", labels=str(path), model="mlp", num_steps=8, augment=False)
    spec = compile_study(Plan(score_runs=1, eval_runs=1, fractions=(0.5,)), config, "study", layout, own.num_examples)
    job, output = spec.scored[0], Output(layout, False, False)
    facts = DataFacts(own.fingerprint, 3, [4, 4, 3])
    run_dir = layout.exps / job.name
    run_dir.mkdir(parents=True)
    Arguments(config=job.config, data=facts).write(run_dir / "args.json")
    (run_dir / "given_labels.csv").write_text(labels_for(job.config, own).inputs["given_labels.csv"])
    check(spec, output)
    table(path, own, own.train_labels)
    with pytest.raises(UserError, match=r"given_labels\.csv has other lines"):
        check(spec, output)
