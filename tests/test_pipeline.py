"""The entry points as `mlflow run` calls them, one for real, and what they leave in MLflow and in the mirror."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import QUICK, datadiet, mlflow_run, mlflow_run_here

import datadiet as dd
from datadiet.errors import UserError
from datadiet.selectors.selection import SELECTORS, chooses_anew, kept_order
from datadiet.storage.files import sealed
from datadiet.storage.layout import score_file
from datadiet.storage.runs import open_run
from datadiet.tracking.fetch import local_file

HEADER = (
    "Dataset,Neural network,Scored by,No.of train datasamples,fraction of data trained on,"
    "Train acc,Test acc,Execution time (in secs)"
)
SCALARS = {"train_loss", "train_acc", "test_loss", "test_acc", "lr", "examples_per_second"}
SCALARS |= {f"time/{name}_seconds" for name in ("train", "eval", "compile", "total")}
SCALARS |= {"forget/mean", "forget/never_learned", "forget/unforgettable"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The whole chain: two runs, scores, means, three subsets, tables."""
    root = tmp_path_factory.mktemp("chain")
    mlflow_run("full_data", root, run=0, **QUICK)
    datadiet("full_data", root, run=1, **QUICK)
    for run in (0, 1):
        for kind in ("l2_error", "grad_norm"):
            datadiet("score", root, run=run, type=kind, batch_size=100)
    mlflow_run_here("score", root, run=0, step=0, batch_size=1000)
    mlflow_run_here("mean_score", root, n_runs=2)
    datadiet("mean_score", root, n_runs=2, type="forget")
    mlflow_run_here("keep_max", root, size=700, **QUICK)
    mlflow_run_here("random_subset", root, size=700, run=3, **QUICK | {"random_label_fraction": 0.1})
    mlflow_run_here("offset_subset", root, size=700, offset=100, scores=score_of(root, "forget"), **QUICK)
    return root


def score_of(root: Path, kind: str, run: str = "", step: int = 4) -> Path:
    return score_file(root / "exps/full_data" / run, kind, step)


@pytest.fixture(scope="module")
def runs(root) -> dict[str, mlflow.entities.Run]:
    """Every run of the `datadiet` experiment by name."""
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    found = mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
    return {run.info.run_name: run for run in found}


PATHS = [
    "full_data/run_0", "full_data/run_1", "keep_max/size_700/run_0", "random_subset/size_700/run_3",
    "offset_subset/size_700.offset_100/run_0",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_training_run_is_in_mlflow_and_in_the_mirror(root, runs, path):
    folder, run = root / "exps" / path, runs[path]
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert (tags["datadiet.kind"], tags["datadiet.exp"], tags["datadiet.path"]) == ("train", path.split("/")[0], path)
    called = "datadiet" if path == "full_data/run_1" else "mlflow run . --env-manager local -e"
    assert f"    {called} {path.split('/')[0]} " in tags["mlflow.note.content"]
    arguments = json.loads((folder / "args.json").read_text())
    logged = {k.removeprefix("cfg."): v for k, v in run.data.params.items() if k.startswith("cfg.")}
    assert logged.keys() == arguments.keys() - {"exp", "data", "format", "record_sha256"}
    assert logged["num_steps"] == "44"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["mlflow_run_id"] == run.info.run_id
    assert summary["test_acc"] == run.data.metrics["test_acc"]
    tested = np.bincount(dd.load_dataset("digits").test_labels, minlength=10)
    assert np.dot(summary["test_acc_per_class"], tested) / tested.sum() == pytest.approx(summary["test_acc"])
    assert summary["test_acc_per_class"][3] == run.data.metrics["test_acc/class_3"]
    assert sum(summary["kept_per_class"]) == summary["num_kept"]
    assert set(run.data.metrics) >= SCALARS
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert sorted(int(p.name) for p in (folder / "ckpts").iterdir()) == [*range(0, 44, 4), 44]


ARTIFACTS = {  # of a run, without its folder
    "full_data/run_0": ["args.json", "forget_scores/ckpt_4.json", "forget_scores/ckpt_4.npy",
                        "forget_scores/ckpt_44.json", "forget_scores/ckpt_44.npy", "summary.json", "test_correct.npy"],
    "keep_max/size_700/run_0": ["args.json", "forget_scores/ckpt_4.json", "forget_scores/ckpt_4.npy",
                                "forget_scores/ckpt_44.json", "forget_scores/ckpt_44.npy", "kept.csv", "summary.json",
                                "test_correct.npy"],
    "full_data/run_0/error_l2_norm_scores/ckpt_4": ["error_l2_norm_scores/ckpt_4.json",
                                                    "error_l2_norm_scores/ckpt_4.npy"],
    "full_data/forget_scores/ckpt_4": [f"forget_scores/ckpt_4.{end}" for end in
                                       ("json", "npy", "runs.npy", "stderr.npy")],
}  # fmt: skip


@pytest.mark.parametrize("name", ARTIFACTS)
def test_who_has_mlflow_alone_has_the_small_files_of_a_run(root, runs, name, tmp_path):
    run_id, folder = runs[name].info.run_id, root / "exps" / name
    place = folder if (folder / "args.json").exists() else folder.parents[1]
    there = Path(mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(tmp_path)))
    found = sorted(p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file())
    assert found == ARTIFACTS[name]
    assert all((there / path).read_bytes() == (place / path).read_bytes() for path in found)
    for path in (p for p in found if p.endswith("npy") and "scores/" in p):
        assert local_file(f"runs:/{run_id}/{path}", "scores").read_bytes() == (place / path).read_bytes()


@pytest.mark.parametrize("path", PATHS)
def test_the_history_is_the_same_in_both(root, runs, path):
    client = mlflow.MlflowClient()
    lines = [json.loads(line) for line in (root / "exps" / path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [11, 22, 33, 44]
    for name in SCALARS:
        history = {m.step: m.value for m in client.get_metric_history(runs[path].info.run_id, name)}
        assert history == {line["step"]: line[name] for line in lines}


def test_subsets_keep_what_they_say(root):
    digits = dd.load_dataset("digits")
    for path, selector, kind, offset in (
        (PATHS[2], "keep_max", "l2_error", 0),
        (PATHS[4], "offset", "forget", 100),
    ):
        values = np.load(score_of(root, kind))
        seed = open_run(root / "exps" / path).config.random_subset_seed
        expected = dd.select(selector, values, size=700, offset=offset, seed=seed)
        kept = list(csv.DictReader((root / "exps" / path / "kept.csv").open()))
        assert [int(row["kept_order"]) for row in kept] == list(range(700))
        assert {row["example_id"] for row in kept} == set(digits.example_ids[expected])
        scores = dict(zip(digits.example_ids, values))
        assert all(float(row["score"]) == scores[row["example_id"]] for row in kept)


def test_forgetting_on_a_subset_is_nan_outside(root):
    digits = dd.load_dataset("digits")
    folder = root / "exps" / PATHS[2]
    kept = {row["example_id"] for row in csv.DictReader((folder / "kept.csv").open())}
    values = np.load(folder / "forget_scores" / "ckpt_44.npy")
    inside = np.array([name in kept for name in digits.example_ids])
    assert np.isfinite(values[inside]).all()
    assert np.isnan(values[~inside]).all()


def test_step_0_is_scored_with_the_untrained_network(root):
    run = dd.open_run(root / "exps/full_data/run_0")
    digits = dd.load_dataset("digits")
    fresh = run.network.init(__import__("jax").random.key(run.config.model_seed))
    images = (digits.train_images / np.float32(255) - digits.mean) / digits.std
    expected = dd.compute_scores("l2_error", run.network, fresh, images, digits.train_labels)
    found = np.load(score_of(root, "l2_error", "run_0", step=0))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(found - np.load(score_of(root, "l2_error", "run_0", step=4))).max() > 0.1


def test_scores_and_means_tell_what_they_are(root, runs):
    for run in (0, 1):
        record = json.loads(score_of(root, "grad_norm", f"run_{run}").with_suffix(".json").read_text())
        assert (record["type"], record["step"], record["runs"], record["dataset"]) == ("grad_norm", 4, [run], "digits")
        assert record["fingerprint"] == dd.load_dataset("digits").fingerprint
    single = [np.load(score_of(root, "l2_error", f"run_{run}")) for run in (0, 1)]
    mean = np.load(score_of(root, "l2_error"))
    np.testing.assert_allclose(mean, (single[0].astype(float) + single[1]) / 2)
    matrix, error = (np.load(score_of(root, "l2_error").with_suffix(f".{name}.npy")) for name in ("runs", "stderr"))
    np.testing.assert_array_equal(matrix, single)
    np.testing.assert_allclose(error, np.abs(matrix[0].astype(float) - matrix[1]) / 2, atol=1e-12)
    record = json.loads(score_of(root, "l2_error").with_suffix(".json").read_text())
    content = score_of(root, "l2_error").with_suffix(".runs.npy").read_bytes()
    assert record["runs_sha256"] == hashlib.sha256(content).hexdigest()
    run = runs["full_data/error_l2_norm_scores/ckpt_4"]
    assert run.data.tags["datadiet.kind"] == "mean_score"
    assert run.data.metrics["score/mean"] == pytest.approx(mean.mean())
    assert run.data.metrics["score/q95"] == pytest.approx(np.percentile(mean, 95))
    assert runs["full_data/run_1/grad_norm_scores/ckpt_4"].data.tags["datadiet.kind"] == "score"
    run = runs["full_data/run_0/error_l2_norm_scores/ckpt_0"]  # scored by a process of its own
    record = json.loads(score_of(root, "l2_error", "run_0", step=0).with_suffix(".json").read_text())
    compiling, total = (run.data.metrics[f"time/{name}_seconds"] for name in ("compile", "total"))
    assert 0 < compiling < total
    assert record["seconds"] == pytest.approx(total - compiling, abs=1e-3)


def test_randomised_labels_are_recorded(root, runs):
    digits = dd.load_dataset("digits")
    noisy, touched = dd.randomize_labels(digits.train_labels, 0.1, seed=0)
    rows = list(csv.DictReader((root / "exps" / PATHS[3] / "random_labels.csv").open()))
    assert [int(row["id"]) for row in rows] == touched.tolist()
    assert [int(row["random_label"]) for row in rows] == noisy[touched].tolist()
    metrics = runs[PATHS[3]].data.metrics
    assert metrics["random_labels/touched"] == 143
    assert metrics["random_labels/changed"] == (noisy != digits.train_labels).sum()


def test_without_an_experiment_name_runs_go_to_datadiet(root, runs):
    launchers = mlflow.search_runs(experiment_ids=["0"], output_format="list")
    assert len(launchers) == 6
    for launcher in launchers:
        assert launcher.info.status == "FINISHED"
        assert launcher.info.run_name.startswith("launcher of ")
        real = runs[launcher.info.run_name.removeprefix("launcher of ")]
        assert real.data.params.items() >= launcher.data.params.items()
        assert real.info.run_id in launcher.data.tags["mlflow.note.content"]


def test_a_named_experiment_has_one_run(root, tmp_path):
    mlflow_run_here("full_data", root, experiment="mine", **QUICK | {"root": tmp_path, "num_steps": 5})
    (run,) = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    assert (run.info.run_name, run.info.status) == ("full_data/run_0", "FINISHED")
    assert {"run", "dataset", "cfg.dataset"} <= set(run.data.params)


def test_the_table_is_the_same_from_mlflow_and_from_the_mirror(root, runs):
    mlflow_run_here("results", root, output=root / "a.csv")
    datadiet("results", root, exps_path=root / "exps", output=root / "b.csv")
    text = (root / "a.csv").read_bytes()
    assert text == (root / "b.csv").read_bytes()
    header, *lines = text.decode().splitlines()
    assert header == HEADER
    assert [line.split(",")[2:5] for line in lines] == [
        ["full data", "1438", "1"],
        ["full data", "1438", "1"],
        ["l2_error", "700", "0.486787"],
        ["forget (offset 100)", "700", "0.486787"],
        ["random", "700", "0.486787"],
    ]


@pytest.mark.parametrize(
    ("command", "params", "message"),
    [
        ("keep_max", {"size": 700, "exp": "x", **QUICK, "score_step": 7}, "error_l2_norm_scores/ckpt_7.npy"),
        (
            "keep_max",
            {"size": 700, "exp": "x", **QUICK, "score_step": 7},
            "datadiet mean_score --n_runs 3 --score_exp full_data",
        ),
        ("keep_max", {"size": 25_000}, "were trained on digits, this one is to train on cifar10"),
        ("keep_max", {"size": 25_000, "score_exp": "none"}, "exps/none/error_l2_norm_scores/ckpt_7800.npy"),
        ("keep_max", {"size": 1439, **QUICK}, "size=1439: the training set has 1438 examples"),
        ("keep_max", {"size": 0, **QUICK}, "size=0: expected at least 1"),
        ("keep_max", {"size": "many", **QUICK}, "size=many: expected at least 1 example to keep, or a fraction"),
        ("keep_max", {**QUICK}, "Missing option '--size'"),
        ("offset_subset", {"size": 1400, "offset": 39, **QUICK}, "from 1 to 1399"),
        ("offset_subset", {"size": 5, "offset": -1, **QUICK}, "offset=-1"),
        ("keep_max", {"size": 5, "scores": "no.npy", **QUICK}, "scores=no.npy: no such file"),
        ("full_data", {**QUICK}, "holds a finished run, which would be lost"),
        ("full_data", {**QUICK, "dataset": "imagenet"}, "dataset='imagenet': expected one of digits"),
        ("full_data", {**QUICK, "model": "vgg"}, "model='vgg': expected one of resnet18_lowres"),
        ("full_data", {**QUICK, "exp": "../up"}, "exp='../up'"),
        ("full_data", {**QUICK, "lr": "nan"}, "lr=nan"),
        ("full_data", {**QUICK, "run": 7, "lr": "1e30"}, "Training diverged"),
        ("full_data", {**QUICK, "trajectory": "forget,auc"}, "trajectory='auc': expected some of forget"),
        ("full_data", {**QUICK, "trajectory_window": 5}, "is used by trajectory=dyn_unc,dual,tdds only"),
        ("full_data", {**QUICK, "decay_steps": "1,b"}, "expected comma-separated whole numbers"),
        ("subset", {"selector": "best", "size": 9}, "selector='best': expected one of keep_max"),
        ("subset", {"selector": "ccs", **QUICK}, "selector=ccs needs a size: --size N"),
        (
            "subset",
            {"selector": "keep_max", "size": 9, "cutoff": 0.1, **QUICK},
            "cutoff=0.1 is used by selector=ccs,d2 only",
        ),
        ("subset", {"selector": "random", "size": 9, "offset": 3, **QUICK}, "offset=3 is used by selector=offset only"),
        (
            "subset",
            {"selector": "keep_max", "size": 9, "features_step": 4, **QUICK},
            "features_step=4 is used by selector=mod",
        ),
        (
            "subset",
            {"selector": "herding", "size": 9, "score_exp": "none", **QUICK},
            "datadiet full_data --run 0 --exp none --dataset digits",
        ),
        ("subset", {"selector": "manifest", **QUICK}, "needs a file of kept examples: --manifest PATH/kept.csv"),
        ("subset", {"selector": "manifest", "manifest": "no.csv", **QUICK}, "manifest=no.csv: expected a csv file"),
        ("subset", {"selector": "random", "size": 9, "manifest": "a", **QUICK}, "is used by selector=manifest only"),
        (
            "select",
            {"dataset": "digits", "selector": "ccs", "size": 1000, "cutoff": 0.5},
            "expected a cutoff of at most 0.3046",
        ),
        ("score", {"run": 9}, "datadiet full_data --run 9 --exp full_data --dataset digits --model mlp"),
        (
            "score",
            {"step": 5},
            "run_0 has no checkpoint there, but at 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44. "
            "The nearest: datadiet score --step 4",
        ),
        ("score", {"type": "el2n"}, "type='el2n': expected one of l2_error"),
        ("score", {"type": "forget"}, "use mean_score"),
        ("mean_score", {"n_runs": 3}, "1 of 3 runs have no l2_error scores at step 4"),
        (
            "mean_score",
            {"n_runs": 3},
            "datadiet score --run 2 --score_exp full_data --type l2_error --step 4",
        ),
        (
            "mean_score",
            {"n_runs": 9},
            "--run 2 --score_exp full_data --type l2_error --step 4 datadiet full_data --run 3 --exp",
        ),
        ("mean_score", {"n_runs": 2, "step": 5}, "The nearest: datadiet mean_score --n_runs 2 --step 4"),
        ("mean_score", {"n_runs": 1, "type": "aum"}, "--augment false --save_steps 4 --trajectory aum"),
        (
            "mean_score",
            {"n_runs": 1, "type": "aum"},
            "datadiet mean_score --n_runs 1 --score_exp full_data_aum --type aum --step 4",
        ),
        ("full_data", {"size": 9}, "full_data has no option --size; it is one of random_subset, keep_max"),
        ("mean_score", {"combine": "max"}, "combine='max': expected one of mean, median, rank_mean"),
        ("mean_score", {"n_runs": 0}, "n_runs=0"),
        ("mean_score", {"n_runs": 1}, "holds other scores (runs: [0, 1] there, [0] asked for)"),
        ("results", {"exps_path": "nowhere"}, "exps_path=nowhere: no such folder"),
        ("results", {"root": "nowhere"}, "No finished training run in MLflow"),
    ],
)
def test_errors_say_what_was_got_and_how_to_repair_it(root, command, params, message):
    done = datadiet(command, root, expect=2, **params)
    assert message in " ".join(done.stderr.split()).replace("/ ", "/"), done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_was_lost_by_the_refusals(root):
    """Runs after the errors above: what was refused left no file and changed none."""
    assert not (root / "exps/x").exists()
    assert json.loads(score_of(root, "l2_error").with_suffix(".json").read_text())["runs"] == [0, 1]
    assert (root / "exps/full_data/run_0/summary.json").exists()


def test_any_selector_trains_and_writes_manifests(root):
    """Each in a folder of its own; a training run keeps what `select` says, and a manifest trains the same."""
    short, here = QUICK | {"num_steps": 4, "offline": "true"}, {"dataset": "digits", "offline": "true"}
    folder, subsets = root / "exps/subset", [name for name in SELECTORS if not chooses_anew(name)]
    for selector in subsets:
        more = {"cutoff": 0.1} if selector in ("ccs", "d2") else {}
        datadiet("subset", root, selector=selector, size=300, **more, **short)
        datadiet("select", root, selector=selector, size=300, **more, **here)
    names = {f"size_300.{name}{'.cutoff_0.1' if name in ('ccs', 'd2') else ''}" for name in subsets}
    names = {name.replace("300.offset", "300.offset.offset_0") for name in names}
    assert {path.name for path in folder.iterdir()} == names == {path.name for path in (root / "exps/select").iterdir()}
    for name in names:
        kept = (folder / name / "run_0/kept.csv").read_text()
        assert kept == (root / "exps/select" / name / "run_0/kept.csv").read_text()
        assert len(kept.splitlines()) == 301
    again = datadiet("select", root, selector="herding", size=300, **here)
    assert "300 examples kept (herding)" in again.stdout
    manifest = root / "exps/select/size_300.herding/run_0/kept.csv"
    datadiet("subset", root, selector="manifest", manifest=manifest, **short)
    one, other = (folder / f"size_300.{name}/run_0" for name in ("herding", "manifest"))
    assert csv_ids(one / "kept.csv") == csv_ids(other / "kept.csv")
    assert one.joinpath("summary.json").exists()
    losses = [json.loads((run / "summary.json").read_text())["test_loss"] for run in (one, other)]
    assert losses[0] == losses[1]


def csv_ids(path: Path) -> list[str]:
    return [row["example_id"] for row in csv.DictReader(path.open())]


def test_features_come_from_the_scored_run(root):
    run = dd.open_run(root / "exps/full_data/run_0")
    digits = dd.load_dataset("digits")
    features = np.asarray(run.features(digits.train_images, 8))
    assert features.shape == (1438, 32)
    datadiet("select", root, dataset="digits", selector="k_center", size=40, features_step=8, exp="x_features")
    kept = csv_ids(root / "exps/x_features/size_40.k_center/run_0/kept.csv")
    seed = run.config.random_subset_seed
    expected = kept_order("k_center", np.zeros(1438), size=40, features=features, seed=seed)
    assert kept == digits.example_ids[expected].tolist()


def test_a_diverged_run_is_failed_in_mlflow_and_unfinished_in_the_mirror(root):
    datadiet("full_data", root, expect=2, run=8, **QUICK | {"lr": 1e30})
    assert not (root / "exps/full_data/run_8/summary.json").exists()
    (run,) = mlflow.search_runs(
        experiment_names=["datadiet"], filter_string="tags.`datadiet.path` = 'full_data/run_8'", output_format="list"
    )
    assert run.info.status == "FAILED"


def test_scores_of_other_data_are_refused(root):
    record_file = score_of(root, "l2_error").with_suffix(".json")
    copy = root / "other.npy"
    copy.write_bytes(score_of(root, "l2_error").read_bytes())
    record = json.loads(record_file.read_text()) | {"fingerprint": "0" * 64, "dataset": "other_digits"}
    copy.with_suffix(".json").write_text(json.dumps(sealed(record)))
    done = datadiet("keep_max", root, expect=2, size=10, exp="y", scores=copy, **QUICK)
    assert f"{copy}: The values belong to other_digits" in done.stderr
    copy.with_suffix(".json").unlink()
    done = datadiet("keep_max", root, size=10, exp="y", scores=copy, **QUICK | {"num_steps": 2})
    assert "no .json beside it says which data it belongs to" in done.stdout


def test_main_is_a_study_under_one_parent(tmp_path):
    """The quick study with fewer runs; a second call repeats nothing, other options are refused."""
    params = {"score_types": "l2_error,forget", "score_runs": 2, "eval_runs": 2, "fractions": 0.5}
    params |= {"num_steps": 22, "width": 16}
    done = datadiet("main", tmp_path, **params)
    assert [" ".join(line.split()[:2]) for line in done.stdout.split("chosen by")[1].splitlines()[1:5]] == [
        "full data", "keep_max l2_error", "keep_max forget", "random 719",
    ]  # fmt: skip
    folder = tmp_path / "exps/main"
    for name in ("report.html", "figures/accuracy.png", "results.csv"):
        assert (folder / name).stat().st_size > 100
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 2 + 4 * 2
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    found = mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
    (parent,) = (run for run in found if run.data.tags["datadiet.kind"] == "study")
    children = [run for run in found if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    artifacts = {a.path for a in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert artifacts >= {"report.html", "study.json", "statistics.json", "figures", "results.csv", "mirror.zip"}
    with_files = [run for run in children if mlflow.MlflowClient().list_artifacts(run.info.run_id)]
    assert {run.data.tags["datadiet.kind"] for run in with_files} == {"mean_score"}
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("summary.json")}
    again = datadiet("main", tmp_path, verbose="true", **params)
    assert again.stdout.count("finished before, taken as it is") == len(before) == 10
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("summary.json")} == before
    other = datadiet("main", tmp_path, expect=2, **params | {"lr": 0.2})
    assert "holds a run made otherwise (lr: 0.1 there, 0.2 asked for)" in " ".join(other.stderr.split())


def test_the_type_of_computation_is_part_of_a_run(root, tmp_path):
    given = QUICK | {"root": tmp_path, "compute_dtype": "bfloat16"}
    datadiet("full_data", root, **given)
    datadiet("score", root, root=tmp_path)
    run, digits = dd.open_run(tmp_path / "exps/full_data/run_0"), dd.load_dataset("digits")
    variables = run.variables(4)
    images = ((digits.train_images / np.float32(255)) - digits.mean) / digits.std
    found = np.load(score_of(tmp_path, "l2_error", "run_0"))
    exact = dd.build_model("mlp", 10, digits.image_shape, run.config.width)
    apart = [
        np.abs(found - dd.compute_scores("l2_error", network, variables, images, digits.train_labels)).mean()
        for network in (run.network, exact)
    ]
    assert 0.2 * apart[1] > apart[0], "scored as it was trained"
    assert 0 < apart[1] < 0.02
    refused = datadiet("full_data", root, expect=2, resume="true", **given | {"compute_dtype": "float32"})
    assert "compute_dtype: bfloat16 there, float32 asked for" in refused.stderr


def test_logits_of_images_as_they_come_are_those_of_training(tmp_path):
    datadiet("full_data", tmp_path, **QUICK | {"model": "simple_cnn_0", "width": 2, "offline": "true"})
    run, digits = dd.open_run(tmp_path / "exps/full_data/run_0"), dd.load_dataset("digits")
    padded = np.pad(digits.test_images, [(0, 0), (12, 12), (12, 12), (0, 0)]).repeat(3, -1)
    found = np.asarray(run.logits(digits.test_images, run.steps[-1]))
    np.testing.assert_array_equal(found, run.logits(padded, run.steps[-1]))
    assert (found.argmax(1) == digits.test_labels).mean() == pytest.approx(run.summary.test_acc)
    with pytest.raises(UserError, match=r"images are \[64, 64, 1\]; the network takes \[32, 32, 3\]"):
        run.logits(np.zeros((2, 64, 64, 1), np.uint8), 0)
