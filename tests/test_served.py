"""A trained network as a model of MLflow: linked, complete without this checkout, served, and told once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import flax
import jax
import mlflow
import numpy as np
import pytest
from conftest import PATIENCE, QUICK, datadiet, end_of, environment, wait

import datadiet as dd
from datadiet.errors import UserError
from datadiet.models import own
from datadiet.models.registry import MODELS, Model
from datadiet.models.source import find_source, requirements
from datadiet.storage import runs
from datadiet.tracking import record

OPTIONS = QUICK | {"num_steps": 22, "width": 8, "size": 300}
RUN = "exps/random_subset/size_300/run_0"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A finished run, whose model MLflow is given afterwards."""
    root = tmp_path_factory.mktemp("served")
    datadiet("random_subset", root, **OPTIONS)
    done = datadiet("random_subset", root, resume="true", log_model="true", **OPTIONS)
    assert "finished before, taken as it is" in done.output
    return root


@pytest.fixture
def told(root) -> SimpleNamespace:
    """What MLflow has: its client, the run and the model."""
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    client, run_id = mlflow.MlflowClient(), str(record.load(root / RUN / record.NAME).id)
    run = client.get_run(run_id)
    models = client.search_logged_models([run.info.experiment_id])
    assert len(models) == 1
    return SimpleNamespace(client=client, run=run, model=models[0], uri=f"runs:/{run_id}/model")


def expected(root: Path, images: np.ndarray) -> np.ndarray:
    """Probabilities by the checkpoint of the last step."""
    return np.asarray(jax.nn.softmax(dd.open_run(root / RUN).logits(images, 22)))


def test_a_model_is_linked_to_its_run_data_and_metrics(root, told):
    model, run = told.model, told.run
    assert (str(model.status), model.source_run_id, model.name) == ("READY", run.info.run_id, "model")
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert {m.key: m.value for m in model.metrics}["test_acc"] == run.data.metrics["test_acc"]
    assert model.params == run.data.params
    digest = run.inputs.dataset_inputs[0].dataset.digest
    assert model.tags["datadiet.path"] == "random_subset/size_300/run_0"
    assert model.tags["datadiet.digest"][:36] == digest
    for name in run.data.metrics:
        steps = [point.step for point in told.client.get_metric_history(run.info.run_id, name)]
        assert sorted(set(steps)) == sorted(steps), "no point twice"


def test_a_model_says_what_it_takes_and_gives_and_holds_no_pickle(told):
    info = mlflow.models.get_model_info(told.uri)
    (taken,), given = info.signature.inputs.inputs, info.signature.outputs
    assert (taken.type, taken.shape) == (np.dtype("uint8"), (-1, 8, 8, 1))
    assert [(column.name, str(column.type)) for column in given.inputs] == [
        ("class", "DataType.string"), ("index", "DataType.long"), ("probabilities", "Array(double)"),
    ]  # fmt: skip
    folder = Path(mlflow.artifacts.download_artifacts(told.uri))
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pickle")]
    assert (folder / "code/datadiet/tracking/served.py").exists()
    assert info.metadata["datadiet"]["classes"] == [str(n) for n in range(10)]
    required = (folder / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in required} >= {
        "mlflow",
        "jax",
        "jaxlib",
        "flax",
        "orbax-checkpoint",
        "numpy",
    }


def test_a_loaded_model_says_what_the_checkpoint_says_for_any_number_of_images(root, told):
    images = dd.load_dataset("digits").test_images
    model = mlflow.pyfunc.load_model(told.uri)
    assert model.unwrap_python_model().predict(None, images[:0]).empty
    for count in (1, 3, 359):
        found = model.predict(images[:count])
        probabilities = np.array(found["probabilities"].tolist()).reshape(count, 10)
        np.testing.assert_allclose(probabilities, expected(root, images[:count]), atol=1e-6)
        assert found["class"].tolist() == [str(index) for index in probabilities.argmax(1)]
    with pytest.raises(mlflow.exceptions.MlflowException, match="incompatible|does not match expected dtype"):
        model.predict(images[:2].astype(np.float32) / 255)


def test_a_model_is_opened_as_the_run_that_it_was_made_of(root, told, own_cache):
    ours, theirs = dd.open_run(root / RUN), dd.open_run(told.uri)
    assert (theirs.config, theirs.data, theirs.steps) == (ours.config, ours.data, [22])
    assert theirs.input("kept.csv").read_bytes() == ours.input("kept.csv").read_bytes()
    images = dd.load_dataset("digits").test_images[:5]
    np.testing.assert_array_equal(theirs.logits(images, 22), ours.logits(images, 22))
    assert dd.open_run(f"models:/{told.model.model_id}").config == ours.config
    with pytest.raises(UserError, match="expected a model that log_model=true made; runs:/.* has: args.json, "):
        dd.open_run(f"runs:/{told.run.info.run_id}")


def test_a_model_that_is_gone_or_was_left_half_is_told_again_by_sync_and_only_then(root, told):
    assert "1 there already" in datadiet("sync", root).output
    told.client.delete_logged_model(told.model.model_id)
    half = told.client.create_logged_model(told.run.info.experiment_id, "model", told.run.info.run_id)
    assert "1 written" in datadiet("sync", root).output
    (again,) = told.client.search_logged_models([told.run.info.experiment_id])
    assert (str(again.status), again.source_run_id) == ("READY", told.run.info.run_id)
    assert again.model_id not in (told.model.model_id, half.model_id)
    assert "1 there already" in datadiet("sync", root).output


def test_mlflow_models_serve_answers_a_request_with_images(root, told, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    version = mlflow.register_model(f"models:/{told.model.model_id}", "digits")  # copies nothing
    words = ["mlflow", "models", "serve", "-m", f"models:/digits/{version.version}", "--env-manager", "local"]
    variables = environment(root) | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONSAFEPATH": "1"}
    del variables["PYTHONPATH"]
    server = subprocess.Popen(
        [sys.executable, "-m", *words, "--host", "127.0.0.1", "--port", str(port)], cwd=tmp_path, env=variables,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip

    def ask(path: str, body: object = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def is_up() -> bool:
        try:
            return ask("ping") is not None
        except OSError:
            return False

    try:
        wait(server, is_up, every=0.3)
        images = dd.load_dataset("digits").test_images[:3]
        lines = json.loads(ask("invocations", {"inputs": images.tolist()}))["predictions"]
        found = np.array([line["probabilities"] for line in lines])
        np.testing.assert_allclose(found, expected(root, images), atol=1e-6)
        assert [line["class"] for line in lines] == [str(line["index"]) for line in lines]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask("invocations", {"inputs": [[1, 2]]})
        assert refused.value.code == 400
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        end_of(server)


def test_a_model_whose_code_would_be_missing_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "mine", Model(lambda classes, width, dtype: None, 8, None))  # type: ignore[arg-type]
    done = datadiet("full_data", tmp_path, 2, log_model="true", **QUICK | {"model": "mine"})
    assert "log_model=true: the code of model=mine would not be in what MLflow is given" in done.stderr
    assert not (tmp_path / "exps").exists()


NETS = """
from flax import linen as nn

from .layers import HIDDEN


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(HIDDEN)(x.reshape(len(x), -1))))


def network():
    return Net()
"""


def test_a_model_of_one_s_own_is_loaded_without_the_file_that_it_was_made_of(tmp_path, monkeypatch, own_cache):
    folder = tmp_path / "served_nets"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text(NETS)
    (folder / "layers.py").write_text("HIDDEN = 4  # nét\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path])
    given = {**QUICK, "num_steps": 11, "model": "served_nets.nets:network", "log_model": "true"}
    given.pop("width", None)
    datadiet("full_data", tmp_path, **given)
    images = dd.load_dataset("digits").test_images[:3]
    logits = np.asarray(dd.open_run(tmp_path / "exps/full_data/run_0").logits(images, 11))
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    uri = f"runs:/{record.load(tmp_path / 'exps/full_data/run_0' / record.NAME).id}/model"
    run = dd.open_run(uri)  # beside the original, which this process has imported
    np.testing.assert_array_equal(run.logits(images, 11), logits)
    shutil.rmtree(folder)
    forget("served_nets")
    loaded = mlflow.pyfunc.load_model(uri).predict(images)
    np.testing.assert_allclose(np.array(loaded["probabilities"].tolist()), jax.nn.softmax(logits), atol=1e-6)
    copy = run.path / "model_code" / "served_nets" / "layers.py"
    assert copy.read_text(encoding="utf-8") == "HIDDEN = 4  # nét\n"
    copy.write_text("HIDDEN = 4\n")
    with pytest.raises(UserError, match=r"was trained with model=served_nets.nets:network: its code \(served"):
        _ = runs.open_run(run.path).network


def forget(package: str) -> None:
    """What this process has imported, as if it were another."""
    own._imported.clear()
    own._siblings.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def test_code_that_lies_beside_a_package_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    (tmp_path / "package_of_nets").mkdir()
    (tmp_path / "package_of_nets" / "nets.py").write_text("import json, flax\nimport beside_it\ndef network(): pass\n")
    (tmp_path / "beside_it.py").touch()
    monkeypatch.chdir(tmp_path)
    done = datadiet("full_data", tmp_path, 2, log_model="true", **QUICK | {"model": "package_of_nets.nets:network"})
    assert "imports beside_it, which would not be in what MLflow is given" in done.stderr
    assert not (tmp_path / "exps").exists()
    (flax_here,) = requirements(find_source("package_of_nets.nets:network"))[0]
    assert flax_here == f"flax=={flax.__version__}"


def test_a_training_that_leaves_no_checkpoint_has_files_but_gives_no_model(tmp_path):
    done = datadiet("full_data", tmp_path, 2, log_model="true", checkpoints="false", **QUICK)
    assert "log_model=true takes the last checkpoint; got checkpoints=false" in done.stderr
    datadiet("full_data", tmp_path, checkpoints="false", **QUICK | {"num_steps": 11, "width": 8})
    noted = record.load(tmp_path / "exps/full_data/run_0" / record.NAME)
    assert [path for path, _ in noted.artifacts] == ["args.json", "test_correct.npy", "summary.json"]
