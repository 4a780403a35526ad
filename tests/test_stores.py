"""Stores of MLflow that cannot be used: one message each, with what repairs it, and never a password in it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest
from click.testing import CliRunner
from conftest import QUICK, store_in
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from datadiet.printable import masked
from datadiet.tracking import mlflow_store, record
from datadiet.tracking.run import track_run
from entrypoints.__main__ import main

VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT")


@pytest.fixture(autouse=True)
def as_before(monkeypatch) -> Iterator[None]:
    """What a URI with a password leaves in the environment goes after the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(mlflow_store, "_given", {})
    yield
    mlflow.set_tracking_uri(None)


class Answers(BaseHTTPRequestHandler):
    """Every request gets the same answer."""

    code, body, heard = 401, b"", []

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.heard.append(self.headers.get("Authorization"))
        self.send_response(self.code)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *words) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def told(tmp_path, uri: str, command: str = "full_data", **params) -> str:
    """What a command says that cannot use its store; it is one message, and nothing was written."""
    mlflow.set_tracking_uri(uri)
    given = {"root": tmp_path, **QUICK, **params} if command == "full_data" else {"root": tmp_path, **params}
    done = CliRunner().invoke(main, [command, *(word for k, v in given.items() for word in (f"--{k}", str(v)))])
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), "no traceback"
    assert done.output.count("Error: ") == 1
    assert len(done.stderr.strip().splitlines()) <= 4, done.stderr
    assert not (tmp_path / "exps").exists()
    assert "MLFLOW_TRACKING_URI" in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("code", "body", "advice"),
    [
        (401, b"You are not authenticated.", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (
            401,
            b'{"error_code": "UNAUTHENTICATED", "message": "who?"}',
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_",
        ),
        (403, b"Permission denied", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "ask who runs it"),
        (404, b"<html>nothing here</html>", "there is no server of MLflow: check host, port and path"),
        (200, b"<html>another server</html>", "there is no server of MLflow: check host, port and path"),
        (200, b"[1]", "there is no server of MLflow: check host, port and path"),
        (500, b"oops", "Start its server"),
    ],
)
def test_a_server_that_refuses_is_told_with_what_it_wants(tmp_path, port, monkeypatch, code, body, advice):
    monkeypatch.setattr(Answers, "code", code)
    monkeypatch.setattr(Answers, "body", body)
    assert advice in told(tmp_path, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("sqlite:///{folder}/none/mlflow.db", "there is no folder"),
        ("sqlite:///{folder}", "Expected a file that you may write"),
        ("sqlite:///{folder}/damaged.db", "is left as it is: name another one, and `datadiet sync"),
        ("sqlite:///{folder}/torn.db", "is left as it is: name another one, and `datadiet sync"),
        ("postgresql://u:hidden@127.0.0.1/db", "pip install 'psycopg"),
        ("mysql+pymysql://u:hidden@127.0.0.1/db", "pip install 'pymysql'"),
        ("mssql+pyodbc://u:hidden@127.0.0.1/db", "pip install 'pyodbc'"),
        ("postgresql+nothing://u:hidden@127.0.0.1/db", "Expected http://HOST:PORT, sqlite:///FILE"),
        ("postgres://u:hidden@127.0.0.1/db", "Expected http://HOST:PORT, sqlite:///FILE"),
        ("sqlite:/mlflow.db", "Expected http://HOST:PORT, sqlite:///FILE"),
        ("http:/127.0.0.1:5000", "Expected http://HOST:PORT, sqlite:///FILE"),
        ("http://[::1", "Expected http://HOST:PORT, sqlite:///FILE"),
        ("http://127.0.0.1:99999999", "Expected http://HOST:PORT, sqlite:///FILE"),
        ("http://u:hid/hidden@127.0.0.1", "Expected http://HOST:PORT, sqlite:///FILE"),
        ("htp://127.0.0.1", "Expected http://HOST:PORT, sqlite:///FILE"),
        ("http://u:hidden@nowhere.invalid", "There is no such host"),
        ("./mlruns", "A folder of files is a store no more"),
        ("http://u:hidden@127.0.0.1:9", "Start its server"),
    ],
)
def test_a_store_that_cannot_be_opened_is_told_with_what_was_expected(tmp_path, uri, advice):
    (tmp_path / "damaged.db").write_bytes(b"no database" * 1000)
    with open(store_in(tmp_path).removeprefix("sqlite:///"), "rb") as whole:
        (tmp_path / "torn.db").write_bytes(whole.read(100) + b"\xff" * 8000)
    text = told(tmp_path, uri.format(folder=tmp_path))
    assert advice in text
    assert "hidden" not in text
    assert not (tmp_path / "none").exists()
    assert (tmp_path / "damaged.db").read_bytes() == b"no database" * 1000


def test_a_store_that_another_process_holds_is_told_as_such(tmp_path, monkeypatch):
    uri, sqlite_connect = store_in(tmp_path), sqlite3.connect
    holder = sqlite_connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    quick = lambda *words, **more: sqlite_connect(*words, **more | {"timeout": 0.1})  # noqa: E731
    monkeypatch.setattr("sqlite3.dbapi2.connect", quick)
    monkeypatch.setattr("sqlite3.connect", quick)
    assert "Another process holds it: try again" in told(tmp_path, uri)
    holder.close()


@pytest.mark.parametrize("command", ["sync", "results"])
def test_every_command_tells_it_so(tmp_path, port, command, monkeypatch):
    monkeypatch.setattr(Answers, "code", 401)
    folder = tmp_path / "mirror"
    (folder / "exps").mkdir(parents=True)
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
    done = CliRunner().invoke(main, [command, "--root", str(folder)])
    assert done.exit_code == 2
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in done.stderr
    assert ("--offline true" in done.stderr) == (command == "results"), "what a command does not take is not advised"


def test_a_store_that_is_full_is_one_line_and_no_traceback(tmp_path, capfd):
    mlflow.set_tracking_uri(store_in(tmp_path))

    def fill(connection, _) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # the least that it can be: as it is now

    said = []
    event.listen(Engine, "connect", fill)
    try:
        with track_run("score", "e", "e/x", params={}, note="n", say=said.append) as run:
            for step in range(400):
                run.log_metrics({f"score/{k}": 1.0 for k in range(20)}, step)
    finally:
        event.remove(Engine, "connect", fill)
    (line,) = said
    assert "is away ((sqlite3.OperationalError) database or disk is full)" in line
    assert "Make room on its disk" in line
    assert "Traceback" not in "".join(capfd.readouterr())


# --- passwords ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:secret@host:5000/x", "http://ann:***@host:5000/x"),
        ("at https://ann:se:cr@et@host/x, and more", "at https://ann:***@host/x, and more"),
        ("postgresql+psycopg://ann:secret@host/db", "postgresql+psycopg://ann:***@host/db"),
        ("postgresql://host/db?user=ann&password=secret", "postgresql://host/db?user=ann&password=***"),
        ("https://token@host/x", "https://***@host/x"),
        ("http://:secret@host", "http://:***@host"),
        ("http://ann:se/cret@host", "http://ann:***@host"),
        ("http://host:5000/#/experiments/1/runs/2", "http://host:5000/#/experiments/1/runs/2"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////home/ann@home/mlflow.db", "sqlite:////home/ann@home/mlflow.db"),
        ("mail ann@host", "mail ann@host"),
    ],
)
def test_passwords_in_addresses_are_masked_and_nothing_else(text, shown):
    assert masked(text) == shown


def test_a_server_gets_the_password_and_nothing_prints_it(tmp_path, port, monkeypatch, capsys):
    """Answers of a server that knows one experiment and one run, whatever it is asked."""
    info = {
        "run_id": "r" * 32,
        "experiment_id": "1",
        "status": "RUNNING",
        "lifecycle_stage": "active",
        "run_name": "e/x",
    }
    run = {"info": info | {"start_time": 1, "artifact_uri": "mlflow-artifacts:/1"}, "data": {}}
    experiment = {"experiment_id": "1", "name": "datadiet", "lifecycle_stage": "active"}
    answer = {"run": run, "runs": [run], "experiment": experiment, "experiments": [experiment], "run_info": info}
    monkeypatch.setattr(Answers, "code", 200)
    monkeypatch.setattr(Answers, "body", json.dumps(answer).encode())
    monkeypatch.setattr(Answers, "heard", [])
    monkeypatch.setattr(record, "now", lambda: 1)  # when that run began
    mlflow.set_tracking_uri(f"http://ann:p%40ss@127.0.0.1:{port}")
    shown, mirror, said = f"http://ann:***@127.0.0.1:{port}", tmp_path / "exps/e/ckpt_1.mlflow_run.json", []
    store = mlflow_store.absolute_store()
    assert store == f"http://ann:p%40ss@127.0.0.1:{port}", "other processes of a study log in too"
    told = {"params": {}, "note": f"of {mlflow_store.store_name()}", "mirror": mirror, "say": said.append}
    with pytest.raises(ConnectionError), track_run("score", "e", "e/x", **told):
        raise ConnectionError(f"{store} is away")
    printed = capsys.readouterr().out
    assert "View run e/x at: http://127.0.0.1" in printed
    assert set(Answers.heard) == {"Basic " + b64encode(b"ann:p@ss").decode()}
    text = mirror.read_text()
    assert f"of {shown}" in text
    assert f"{shown} is away" in text
    for place in (text, printed, *said, os.environ["MLFLOW_TRACKING_URI"], str(mlflow.get_tracking_uri())):
        assert not re.search(r"p%40ss|p@ss", place)
    client = TrackingServiceClient(mlflow.get_tracking_uri())
    assert "p%40ss" not in client.store.get_host_creds().host


def test_what_is_told_to_mlflow_has_no_control_characters(tmp_path):
    mlflow.set_tracking_uri(store_in(tmp_path))
    evil, shown = "a\x1b[2J\u202eb", "a\\x1b[2J\\u202eb"
    with track_run(
        "score", "e", f"e/{evil}", params={"name": evil, "many": [evil]}, note=f"{evil}\nmore", by=evil
    ) as run:
        run.log_params({f"cfg.{evil}": 1})
        run.log_metrics({f"score/{evil}": 1.0})
        run.log_input(evil, "f" * 36, "scoring", kept_by=evil)
        run.set_tag("datadiet.later", evil)
    found = mlflow.get_run(str(run.id))
    assert found.info.run_name == f"e/{shown}"
    assert found.data.params["cfg.name"] == found.data.params["cfg.many"] == shown
    assert found.data.tags["datadiet.by"] == found.data.tags["datadiet.later"] == shown
    assert found.data.tags["mlflow.note.content"] == f"{shown}\nmore"
    assert found.data.params["cfg.a__2J_b"] == "1"
    assert found.data.metrics == {"score/a__2J_b": 1.0}
    assert found.inputs.dataset_inputs[0].dataset.name == shown
    assert str(found.to_dictionary()).isprintable()


def test_a_server_has_mlflow_print_the_link_of_a_run_and_none_of_its_children(tmp_path, monkeypatch):
    mlflow.set_tracking_uri(store_in(tmp_path))
    silent, own = [], mlflow.MlflowClient.set_terminated

    def ended(client, run_id, *given) -> None:
        silent.append(mlflow_store.NO_LINKS.get())
        own(client, run_id, *given)

    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", ended)
    given = {"params": {}, "note": ""}
    with track_run("study", "s", "s", **given) as study:
        for wait in (False, True):
            monkeypatch.setattr("datadiet.tracking.run.SEND_SECONDS", 60 * wait)
            with track_run("train", "s", f"s/{wait}", parent=study, **given) as child:
                child.log_metrics({"a": 1.0})
    assert silent == [True, True, False]
