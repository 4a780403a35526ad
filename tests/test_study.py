"""A study: what it compares, what it refuses, and its table; killed and continued it ends the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from conftest import PATIENCE, begin, datadiet, end_of, wait

from datadiet import config as options
from datadiet.config import TrainConfig
from datadiet.errors import UserError
from datadiet.storage.claims import lock_run
from datadiet.storage.files import SEAL, read_json
from datadiet.storage.layout import ExperimentLayout
from datadiet.storage.runs import open_run
from datadiet.storage.score_files import load_scores
from datadiet.study.arms import arms
from datadiet.study.plan import Plan
from datadiet.study.spec import MeanJob, TrainJob, compile_study
from datadiet.tracking.record import METRICS

GIVEN = TrainConfig(dataset="digits", model="mlp", width=16, num_steps=44, augment=False)
OPTIONS = {"dataset": "digits", "model": "mlp", "width": 16, "num_steps": 44, "augment": "false"}
TINY = {"score_types": "l2_error,forget", "score_runs": 2, "eval_runs": 2, "fractions": 0.5}
LAYOUT = ExperimentLayout(Path("root"))


# --- what is compared -------------------------------------------------------------------------


PLAN = Plan(
    score_runs=3, score_types=("l2_error", "forget"), score_steps=(4, 8), selectors=("keep_max", "random", "offset"),
    fractions=(0.5, 0.2),
)  # fmt: skip


def test_every_selector_meets_every_score_and_the_baselines_are_there_once():
    made = [arm.name for arm in arms(PLAN, (4, 8))]
    assert len(made) == len(set(made)) == 2 + 2 * 2 * 2
    assert made[:2] == ["full data", "random"]
    assert "offset forget step 8" in made
    assert [arm.name for arm in arms(PLAN, (4,))][2:4] == ["keep_max l2_error", "keep_max forget"]


def test_no_seed_scores_and_judges_and_positions_share_seeds():
    spec = compile_study(PLAN, GIVEN, "s", LAYOUT, 1438)
    made = spec.cells
    assert len(made) == 1 + 2 * (1 + 2 * 2 * 2)
    scoring = {job.config.train_seed for job in spec.scored}
    seeds = [[job.config.train_seed for job in cell.jobs] for cell in made]
    assert all(own == seeds[0] for own in seeds)
    assert not scoring & set(seeds[0])
    assert len(scoring) == 3
    assert len(set(seeds[0])) == 5


def test_jobs_come_after_what_they_wait_for_and_share_no_folder():
    made = compile_study(PLAN, replace(GIVEN, offset=7), "s", LAYOUT, 1438).jobs
    names = [job.name for job in made]
    assert len(set(names)) == len(names) == 3 + 3 * 2 + 2 * 2 + 19 * 5
    for position, job in enumerate(made):
        assert set(job.after) <= set(names[:position])
    assert len({job.config for job in made if isinstance(job, TrainJob)}) == 3 + 19 * 5
    (mean,) = (job for job in made if isinstance(job, MeanJob) and (job.type, job.step) == ("forget", 8))
    assert mean.after == ("s/full_data/run_0", "s/full_data/run_1", "s/full_data/run_2"), "made by training"
    chosen = next(job for job in made if job.name == "s/offset.forget.8/size_288.offset_7/run_4")
    assert chosen.after == (mean.name,)
    assert chosen.config.scores == f"root/exps/{mean.name}.npy"
    assert chosen.tags == {"arm": "offset forget step 8", "fraction": "0.2003", "role": "evaluation", "size": "288"}


SELECTORS = Plan(
    score_runs=2, eval_runs=2, score_types=("aum", "l2_error"), fractions=(0.5,),
    score_steps=(12,),
    selectors=("ccs", "ccs:cutoff=0.3:strata=5", "keep_max:balance=equal", "moderate", "d2", "random:balance=equal"),
)  # fmt: skip


def test_selectors_have_options_of_their_own_beside_those_of_all():
    spec = compile_study(SELECTORS, replace(GIVEN, cutoff=0.1, center="median"), "s", LAYOUT, 1438)
    made = spec.cells
    assert len({job.config for cell in made for job in cell.jobs}) == 2 * len(made) == 2 * (2 + 2 * 4 + 2)
    folders = {job.name for cell in made for job in cell.jobs}
    assert len(folders) == 2 * len(made)
    by_arm = {cell.arm.name: cell.jobs[0].config for cell in made}
    assert [by_arm[arm].cutoff for arm in ("ccs aum", "ccs aum cutoff 0.3 strata 5", "d2 l2_error")] == [0.1, 0.3, 0.1]
    assert by_arm["ccs aum cutoff 0.3 strata 5"].strata == 5
    assert (by_arm["moderate"].center, by_arm["ccs aum"].center) == ("median", "mean")
    assert (by_arm["random"].balance, by_arm["random balance equal"].balance) == (None, "equal")
    assert by_arm["moderate"].features_run == "root/exps/s/full_data/run_0"
    assert by_arm["moderate"].features_step == by_arm["d2 aum"].features_step == 12
    assert by_arm["ccs aum"].features_step is by_arm["random"].features_run is None
    for scored in spec.scored:
        assert (scored.config.cutoff, scored.config.center) == (0.0, "mean")
    made = compile_study(SELECTORS, GIVEN, "s", LAYOUT, 1438).jobs
    assert len({job.name for job in made}) == len(made)
    waits = {job.name: job.after for job in made}
    assert waits["s/moderate/size_719.moderate/run_2"] == ("s/full_data/run_0",)
    assert len(waits["s/d2.aum.12/size_719.d2/run_2"]) == 2


def test_a_study_compares_any_selectors(tmp_path, no_pictures):
    given = {
        "selectors": "ccs:cutoff=0.2,moderate,keep_max:balance=equal,offset",
        "offset": 30,
        "score_types": "aum",
        "eval_runs": 1,
    }
    datadiet("study", tmp_path, workers=1, exp="s", score_steps=44, **OPTIONS | TINY | given)
    described = read_json(tmp_path / "exps/s/study.json")
    assert described["plan"]["offset"] == 30
    kept = {}
    for cell in described["cells"]:
        (tmp_path / "exps/s/report.html").read_text().index(cell["arm"])
        for path in cell["runs"]:
            run = open_run(tmp_path / "exps" / path)
            kept[cell["arm"]] = run.summary.kept_per_class
            assert {k: v for k, v in run.arguments.as_json().items() if k in cell["options"]} == cell["options"]
    assert list(kept) == [
        "full data", "ccs aum cutoff 0.2", "moderate", "keep_max aum balance equal", "offset aum", "random",
    ]  # fmt: skip
    assert max(kept["keep_max aum balance equal"]) - min(kept["keep_max aum balance equal"]) <= 1
    assert max(kept["random"]) - min(kept["random"]) > 1


def test_the_budget_is_steps_or_passes():
    given = replace(GIVEN, selector="random", size=360, decay_steps=(20, 30), log_steps=10)
    same = options.resolve(given, 1440)
    assert options.fit_budget(same, 1440) == same
    passes = options.fit_budget(replace(same, budget="epochs"), 1440)
    assert (passes.num_steps, passes.decay_steps, passes.log_steps, passes.save_steps) == (11, (5, 8), 2, 1)
    assert options.fit_budget(replace(same, budget="epochs", size=None), 1440).num_steps == 44
    assert options.fit_budget(replace(same, budget="epochs", size=1), 1440).num_steps == 1


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"score_runs": 0}, "score_runs=0: expected a whole number from 1 to 10000"),
        ({"score_types": "l2_error,nonsense"}, "score_types=l2_error,nonsense: expected one or more of l2_error"),
        ({"selectors": "best"}, "selectors=best: expected one or more of keep_max"),
        ({"selectors": "keep_max,keep_max"}, "selectors=keep_max,keep_max: expected one or more of"),
        ({"selectors": "ccs:offset=3"}, "got 'offset=3', expected option=value with one of cutoff, strata, balance"),
        ({"selectors": "ccs:strata=many"}, "got 'strata=many', expected one of type int"),
        ({"selectors": "ccs:cutoff=0.6"}, "cutoff=0.6 leaves 576 of 1438 examples, fewer than size=719"),
        ({"selectors": "ccs,ccs:strata=50"}, "ccs and ccs:strata=50 are the same; name it once"),
        ({"cutoff": 0.3}, "cutoff=0.3: expected a selector that uses it among keep_max"),
        ({"features_step": 3, "selectors": "moderate"}, "features_step=3: expected a selector of features, and one of"),
        ({"fractions": "0.5,1"}, "fractions=1.0: expected a fraction above 0, below 1"),
        ({"fractions": "0.5,0.5001"}, "of 1438 examples these keep 719, 719"),
        ({"fractions": "0.0001"}, "these keep 0; expected different sizes"),
        ({"fractions": "half"}, "'half' is not a valid float"),
        ({"score_steps": "5"}, "no checkpoint is saved at 5; there are checkpoints at 0, 4, 8,"),
        ({"score_types": "aum"}, "score_types=aum: after 4 steps not every example has been presented once"),
        ({"margin": 0}, "margin=0.0: expected a number of percentage points above 0, below 100"),
        ({"track_forgetting": "false"}, "score_types=forget needs"),
        ({"model_seed": 3}, "model_seed=3: the runs of a study have seeds of their own"),
        ({"budget": "hours"}, "budget=hours: expected one of iterations, epochs"),
        ({"engine": "slurm"}, "engine=slurm: expected one of local, ray"),
        ({"workers": 0}, "workers=0: expected a whole number of at least 1"),
        ({"ray_address": "auto:1"}, "is used with engine=ray only"),
        ({"model": "gpt"}, "model='gpt'"),
        ({"augment": "maybe"}, "'maybe' is not a valid boolean"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_trained(tmp_path, given, message):
    done = datadiet("study", tmp_path, expect=2, **OPTIONS | TINY | given)
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "exps").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score_run: 3", "'score_run' is no option of study. Did you mean score_runs? Known: augment, balance, beta,"),
        ("plan: x.yaml", "'plan' is no option of study"),
        ("- 1", "expected option names and values"),
        ("lr: {a: 1}", "lr has nested values"),
        ("lr: [", "not readable as YAML or JSON"),
        ("lr: high", "'high' is not a valid float"),
    ],
)
def test_a_plan_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    assert message in " ".join(datadiet("study", tmp_path, expect=2, plan="plan.yaml").stderr.split())
    assert "cannot be read" in datadiet("study", tmp_path, expect=2, plan="absent.yaml").stderr


# --- what is left -----------------------------------------------------------------------------


def tables(root: Path, exp: str) -> dict[str, object]:
    """What a study leaves, without timings: tables, scores, and the summary of every run."""
    folder = root / "exps" / exp
    found: dict[str, object] = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("ckpt_*.npy")}
    numbers = read_json(folder / "statistics.json")
    del numbers["cost"], numbers["decision"]["cost"]
    found["statistics.json"] = numbers
    found["results.csv"] = [line.rsplit(",", 1)[0] for line in (folder / "results.csv").read_text().splitlines()]
    described = read_json(folder / "study.json")
    found["study.json"] = described
    for path in folder.rglob("summary.json"):
        summary = read_json(path)
        timed = {"mlflow_run_id", SEAL}  # the seal covers the seconds
        kept = {k: v for k, v in summary.items() if not k.endswith("seconds") and k not in timed}
        found[path.relative_to(folder).as_posix()] = kept
    for path in folder.rglob("kept.csv"):
        found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def runs_of_study() -> tuple[mlflow.entities.Run, list[mlflow.entities.Run]]:
    """The one study run, and all others."""
    found = mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
    (parent,) = (run for run in found if run.data.tags["datadiet.kind"] == "study")
    return parent, [run for run in found if run is not parent]


@pytest.fixture(scope="module")
def base(tmp_path_factory, no_pictures) -> Path:
    """A folder with a plan and the study that was done in one process, undisturbed."""
    base = tmp_path_factory.mktemp("study")
    plan = OPTIONS | TINY | {"augment": False, "score_types": ["l2_error", "forget"], "num_steps": 200, "exp": "s"}
    (base / "plan.json").write_text(json.dumps(plan))
    datadiet("study", base, plan="plan.json", workers=1, root=base / "whole")
    return base


def test_a_plan_file_says_the_options_and_the_command_line_overrides_them(base):
    described = read_json(base / "whole/exps/s/study.json")
    assert (described["plan"]["num_steps"], described["plan"]["fractions"]) == (200, [0.5])
    assert described["plan"]["score_types"] == ["l2_error", "forget"]
    done = datadiet("study", base, expect=2, plan="plan.json", workers=1, root=base / "whole", lr=0.2, exp="s")
    assert "lr: 0.1 there, 0.2 asked for" in " ".join(done.stderr.split())
    assert "As it was made: datadiet study" in done.stderr
    done = datadiet("study", base, expect=2, plan="plan.json", workers=1, root=base / "whole", num_steps=100)
    assert "num_steps: 200 there, 100 asked for" in " ".join(done.stderr.split())
    assert "As it was made" not in done.stderr, "a study sets steps of its runs itself"


def test_study_json_names_what_is_there(base):
    exps = base / "whole/exps"
    described = read_json(exps / "s/study.json")
    assert [cell["arm"] for cell in described["cells"]] == [
        "full data", "keep_max l2_error", "keep_max forget", "random",
    ]  # fmt: skip
    for cell in described["cells"]:
        summaries = [read_json(exps / run / "summary.json") for run in cell["runs"]]
        assert {summary["num_kept"] for summary in summaries} == {cell["size"]}
        assert {summary["budget"] for summary in summaries} == {described["budget"]} == {"iterations"}
        assert [int(run.rsplit("_", 1)[1]) for run in cell["runs"]] == [2, 3]
    for mean in described["means"]:
        values, record = load_scores(exps / mean["path"])
        assert record is not None
        assert (record.type, record.step, record.runs) == (mean["type"], mean["step"], [0, 1])
        assert values.shape == (1438,)
    assert all((exps / run / "args.json").exists() for run in described["score_runs"])


def test_the_same_study_again_changes_nothing(base):
    folder = base / "whole/exps/s"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name in ("summary.json",) or p.suffix == ".npy"}
    content = tables(base / "whole", "s")
    parent, children = runs_of_study()
    datadiet("study", base, plan="plan.json", workers=1, root=base / "whole")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert tables(base / "whole", "s") == content
    again, others = runs_of_study()
    assert (again.info.run_id, again.info.status) == (parent.info.run_id, "FINISHED")
    assert {run.info.run_id for run in others} == {run.info.run_id for run in children}


def test_a_study_that_is_refused_stays_finished(base, monkeypatch):
    def away() -> None:
        raise UserError("MLflow is away")

    given, path = {"plan": "plan.json", "workers": 1, "root": base / "whole"}, base / "whole/exps/s/mlflow_run.json"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("datadiet.tracking.mlflow_store.connected", away)
        assert "MLflow is away" in datadiet("study", base, expect=2, **given).stderr
    with lock_run(path):
        assert "another process" in datadiet("study", base, expect=2, **given).stderr
    assert path.read_bytes() == before


def test_runs_in_mlflow_can_be_grouped(base):
    mlflow.set_tracking_uri(f"sqlite:///{base}/mlflow.db")
    parent, children = runs_of_study()
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    kinds = [run.data.tags["datadiet.kind"] for run in children]
    assert {kind: kinds.count(kind) for kind in kinds} == {"train": 10, "score": 2, "mean_score": 2}
    judged = [run for run in children if run.data.tags.get("datadiet.role") == "evaluation"]
    arms = [(run.data.tags["datadiet.arm"], run.data.tags["datadiet.size"]) for run in judged]
    assert {arm: arms.count(arm) for arm in arms} == {
        ("full data", "1438"): 2, ("keep_max l2_error", "719"): 2, ("keep_max forget", "719"): 2, ("random", "719"): 2,
    }  # fmt: skip
    assert {run.data.params["cfg.budget"] for run in judged} == {"iterations"}
    assert {data.dataset.digest for data in parent.inputs.dataset_inputs} == {
        read_json(base / "whole/exps/s/study.json")["fingerprint"][:36]
    }


def test_a_table_of_mlflow_has_a_row_for_the_study_and_its_arms_with_the_same_columns(base):
    mlflow.set_tracking_uri(f"sqlite:///{base}/mlflow.db")
    parent, children = runs_of_study()
    judged = [run for run in children if run.data.tags.get("datadiet.role") == "evaluation"]
    numbers = read_json(base / "whole/exps/s/statistics.json")
    found = {cell["arm"]: (cell["accuracy"]["mean"], cell["verdict"]) for cell in numbers["cells"]}
    for run in judged:
        accuracy, verdict = found[run.data.tags["datadiet.arm"]]
        assert run.data.metrics["decision/accuracy"] == accuracy
        assert run.data.metrics["decision/accuracy_full"] == parent.data.metrics["decision/accuracy_full"]
        assert run.data.tags["datadiet.decision.answer"] == (verdict or "all of the data")
        (point,) = mlflow.MlflowClient().get_metric_history(run.info.run_id, "decision/kept_fraction")
        assert (point.step, point.value) == (2, int(run.data.tags["datadiet.size"]) / 1438)
    tags = mlflow.get_experiment(parent.info.experiment_id).tags
    for view in ("datadiet", f"datadiet-{parent.info.run_id}"):
        columns = json.loads(tags[f"mlflow.sharedViewState.{view}"])["selectedColumns"]
        assert columns == [*(f"metrics.`{name}`" for name in METRICS), "tags.`datadiet.decision.answer`"]
    (grouped,) = (json.loads(text) for name, text in tags.items() if name.endswith(parent.info.run_id))
    assert mlflow.search_runs([parent.info.experiment_id], grouped["searchFilter"]).run_id.nunique() == len(judged)
    assert len(grouped["groupsExpanded"]) == len(found)


def begin_study(base: Path, root: Path) -> subprocess.Popen:
    """In two workers."""
    return begin("study", base, root, plan="plan.json", workers=2, root=root)


def workers_of(process: subprocess.Popen) -> list[int]:
    """Its worker processes that run; one may end while they are looked at, and so may the study."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text() and is_running(int(pid)):
                    found.append(int(pid))
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only what is left of one until its parent has asked for its end."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_killed_stopped_and_continued_in_workers_it_ends_the_same(base, tmp_path):
    runs = tmp_path / "exps/s"
    study = begin_study(base, tmp_path)
    wait(study, lambda: len(list(runs.glob("full_data/run_[01]/ckpts/[1-9]*"))) > 1)
    wait(study, lambda: len(workers_of(study)) == 2)
    killed = workers_of(study)
    os.kill(killed[0], signal.SIGKILL)
    wait(study, lambda: len(set(workers_of(study)) - set(killed)) == 1)
    wait(study, lambda: list(runs.glob("full_data/run_*/summary.json")))
    left = workers_of(study)
    study.kill()
    told, _ = end_of(study)
    assert "its process died (SIGKILL); it is begun again" in told
    end = time.monotonic() + PATIENCE
    while any(map(is_running, left)):
        assert time.monotonic() < end, "workers outlive their study"
        time.sleep(0.01)

    study = begin_study(base, tmp_path)
    wait(study, lambda: list(runs.glob("*/size_*/run_*/ckpts/*")))
    study.terminate()
    _, errors = end_of(study)
    assert study.returncode == 75, errors
    assert "Continue: python -m entrypoints study --plan plan.json" in errors

    datadiet("study", tmp_path, plan=base / "plan.json", workers=1, root=tmp_path)
    one, other = tables(base / "whole", "s"), tables(tmp_path, "s")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    parent, children = runs_of_study()
    assert parent.info.status == "FINISHED"
    trained = [run for run in children if run.data.tags["datadiet.kind"] == "train"]
    assert (len(trained), {run.info.status for run in trained}) == (10, {"FINISHED"})
    assert "RUNNING" not in {run.info.status for run in children}


def test_ray_gives_the_same(base, tmp_path):
    ray = pytest.importorskip("ray")
    datadiet("study", base, plan="plan.json", engine="ray", workers=2, root=tmp_path)
    assert not ray.is_initialized()
    one, other = tables(base / "whole", "s"), tables(tmp_path, "s")
    assert [name for name in one | other if one.get(name) != other.get(name)] == []
