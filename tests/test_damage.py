"""Files of the mirror, damaged at random: an error that tells, or what was there; never a crash or another value."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT, QUICK, datadiet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.report.results_table import from_mirror
from datadiet.storage.files import append_line, good_lines, read_lines, write_lines
from datadiet.storage.manifests import manifest_ids
from datadiet.storage.runs import open_run
from datadiet.storage.score_files import load_scores
from datadiet.tracking import record

RUN = "exps/full_data/run_0"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run and a manifest."""
    root = tmp_path_factory.mktemp("made")
    datadiet("full_data", root, offline="true", **QUICK)
    datadiet("select", root, dataset="digits", selector="random", size=700, offline="true")
    return root


def plain(values: Any) -> Any:
    return [a.tobytes() if isinstance(a, np.ndarray) else a for a in values] if isinstance(values, tuple) else values


def of_manifest(path: Path) -> bytes:
    return manifest_ids(path.with_suffix(".csv"), load_dataset("digits")).tobytes()


def of_record(path: Path) -> dict[str, Any]:
    return dataclasses.asdict(record.load(path))


READERS: dict[str, Callable[[Path], Any]] = {
    f"{RUN}/forget_scores/ckpt_44.npy": lambda path: plain(load_scores(path)),
    f"{RUN}/forget_scores/ckpt_44.json": lambda path: plain(load_scores(path.with_suffix(".npy"))),
    f"{RUN}/args.json": lambda path: open_run(path.parent).arguments.as_json(),
    f"{RUN}/summary.json": lambda path: from_mirror(path.parents[3]),
    f"{RUN}/mlflow_run.json": of_record,
    "exps/select/size_700.random/run_0/kept.csv": of_manifest,
    "exps/select/size_700.random/run_0/kept.json": of_manifest,
}


def mutated(content: bytes, kind: str, place: float, drawn: bytes) -> bytes:
    at = int(place * len(content))
    cut = {"change": len(drawn), "insert": 0, "remove": 3 * len(drawn), "shorten": len(content)}[kind]
    put = b"" if kind in ("remove", "shorten") else drawn
    return content[:at] + put + content[at + cut :]


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_an_error_or_what_it_was(made, name):
    path, read = made / name, READERS[name]
    before, right = path.read_bytes(), read(made / name)

    @settings(
        max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )  # fmt: skip
    @given(
        kind=st.sampled_from(["change", "insert", "remove", "shorten"]), place=st.floats(0, 1, exclude_max=True),
        drawn=st.binary(min_size=1, max_size=9) | st.sampled_from([b"null", b"1e999", b'"', b"[[[[", b"NaN", b"\n"]),
    )  # fmt: skip
    def holds(kind: str, place: float, drawn: bytes) -> None:
        path.write_bytes(mutated(before, kind, place, drawn))
        try:
            assert read(path) == right
        except UserError as error:
            assert Path(name).stem.split(".")[0] in str(error) or "exps_path" in str(error)
        finally:
            path.write_bytes(before)

    holds()


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["change", "insert", "remove", "shorten"]),
    place=st.floats(0, 1, exclude_max=True),
    drawn=st.binary(min_size=1, max_size=9),
)
def test_a_damaged_history_is_an_error_and_good_up_to_the_damage(made, kind, place, drawn):
    path = made / RUN / "metrics.jsonl"
    before, right = path.read_bytes(), read_lines(path)
    whole = before[: int(place * len(before))].count(b"\n")
    path.write_bytes(mutated(before, kind, place, drawn))
    try:
        found = good_lines(path)
        assert found == right[: len(found)]
        assert len(found) >= whole
        try:
            assert read_lines(path, last=44) == right
        except UserError as error:
            assert "metrics.jsonl: " in str(error)
    finally:
        path.write_bytes(before)


def test_a_changed_digit_of_a_history_is_told_by_all_who_read_it(tmp_path, made):
    shutil.copytree(made / "exps", tmp_path / "exps")
    path = tmp_path / RUN / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('"test_acc": 0.', '"test_acc": 0.1', 1)
    path.write_text("\n".join(lines) + "\n")
    told = f"{path}: line 2 is not what was written there; it is damaged"
    with pytest.raises(UserError, match=told):
        read_lines(path)
    assert told in datadiet("sync", tmp_path, expect=2, root=tmp_path).stderr
    assert told in datadiet("full_data", tmp_path, expect=2, root=tmp_path, resume="true", **QUICK).stderr


def test_a_history_without_seals_is_read_as_it_was_written(tmp_path):
    path, values = tmp_path / "metrics.jsonl", [{"step": 11, "loss": 0.5}, {"step": 22, "loss": 0.25}]
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    assert read_lines(path, last=22) == values
    append_line(path, {"step": 33})
    with pytest.raises(UserError, match="line 1 is not what"):  # a line that lost its seal is no old one
        read_lines(path)
    write_lines(path, values)
    assert read_lines(path) == values


# --- what is never done with a file or a text ---------------------------------------------------

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def misdeeds(source: str) -> list[str]:
    """Ways in which a text could become code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS or called in ("os.system", "os.popen", "yaml.load", "yaml.unsafe_load"):
            found.append(f"calls {called}")
        for word in node.keywords:
            true = not (isinstance(word.value, ast.Constant) and word.value.value is False)
            if word.arg in ("allow_pickle", "shell") and true:
                found.append(f"{called}({word.arg}=…)")
        if called == "np.load" and "allow_pickle" not in [word.arg for word in node.keywords]:
            found.append("np.load without allow_pickle=False")
    return found


def test_no_text_becomes_code():
    files = [p for folder in ("datadiet", "entrypoints", "benchmarks") for p in (PROJECT / folder).rglob("*.py")]
    assert len(files) > 40
    found = {p.name: bad for p in files if (bad := misdeeds(p.read_text()))}
    assert found == {"cifar.py": ["imports pickle"]}, "of an unpickler that builds nothing but arrays and texts"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "np.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(f)",
        "subprocess.run(x, shell=True)", "eval(x)", "os.system(x)",
    ],
)  # fmt: skip
def test_misdeeds_are_found(line):
    assert misdeeds(line)


# --- places -------------------------------------------------------------------------------------


def test_a_link_out_of_the_mirror_is_refused(tmp_path, made):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root/exps").mkdir(parents=True)
    (tmp_path / "root/exps/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/exps/round").symlink_to(tmp_path / "root/exps/round")
    for exp in ("out", "out/deeper", "round", "round/deeper"):
        done = datadiet("full_data", tmp_path, expect=2, root="root", exp=exp, offline="true", **QUICK)
        assert "a symbolic link leads out of root/exps" in done.stderr
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/exps").symlink_to(made / "exps")  # a mirror may lie anywhere
    done = datadiet("results", tmp_path, root="linked", exps_path="linked/exps", offline="true", output="t.csv")
    assert "1 finished training runs" in done.output


def test_a_table_replaces_nothing_but_a_table(made, tmp_path):
    output = tmp_path / "notes.csv"
    output.write_text("my notes\n")
    given = {"exps_path": made / "exps", "output": output, "offline": "true"}
    assert "is no table of results" in datadiet("results", tmp_path, expect=2, **given).stderr
    assert output.read_text() == "my notes\n"
    for more in ({"overwrite": "true"}, {}):  # what is a table now may be replaced
        datadiet("results", tmp_path, **given, **more)
        assert output.read_text().startswith("Dataset,")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_steps": 10**12}, "num_steps=1000000000000: expected at most 1000000000"),
        ({"num_steps": 10**9, "log_steps": 10**8, "save_steps": 1}, "save_steps=1: expected at least 10000"),
        ({"num_steps": 10**9, "save_steps": 10**8}, "log_steps=11: expected at least 1000"),
        ({"lr": "1e300"}, "lr=1e+300: expected at most 1e+38"),
        ({"decay_steps": 10**30}, "decay_steps"),
        ({"data_dir": "~nouser/x"}, "data_dir=~nouser/x: expected a folder"),
    ],
)
def test_what_would_never_end_is_refused(tmp_path, given, message):
    assert message in datadiet("full_data", tmp_path, expect=2, **QUICK | given).stderr
