"""The network of a finished run as a model of MLflow: from its checkpoint, as its record says."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

import datadiet
from datadiet.models.source import put
from datadiet.storage.layout import MODEL_CODE
from datadiet.tracking.mlflow_store import shown_tags
from datadiet.tracking.record import Record

NAME = "model"  # runs:/ID/model
# What datadiet imports to load a network; its code itself goes into the model.
REQUIRED = ("mlflow", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas", "filelock", "pyyaml")
CODE = Path(datadiet.__file__).parent


def has_model(client: MlflowClient, run_id: str) -> bool:
    """Whether the model of a run is there as a whole; what a process left that was killed is removed."""
    whole = False
    for made in _models(client, run_id):
        if made.status == LoggedModelStatus.READY:
            whole = True
        else:
            client.delete_logged_model(made.model_id)
    return whole


def _models(client: MlflowClient, run_id: str) -> list[Any]:
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{NAME}'")
    return list(found)


def log_model(client: MlflowClient, run_id: str, record: Record) -> None:
    """Give MLflow the model that a record tells of, linked to its run, with the metrics of its step; where it is there
    already, nothing is done.

    Raises:
        one of AWAY.
        UserError: the checkpoint is damaged or gone.
    """
    told = record.model
    if told is None or record.path is None or has_model(client, run_id):
        return
    from mlflow import pyfunc  # here: it takes a second, and most runs give no model
    from mlflow.models import Model

    example = np.array(told["example"], told["dtype"]).reshape(-1, *told["image_shape"])
    facts = {"run": record.name, **{k: told[k] for k in ("step", "image_shape", "dtype", "classes")}}
    run = client.get_run(run_id)  # its experiment need not be the one that MLflow would take
    made = client.create_logged_model(run.info.experiment_id, NAME, run_id, _tags(record), run.data.params)
    with tempfile.TemporaryDirectory() as temporary, _quietly():
        exps = Path(temporary) / "exps"
        _copy(record.path.parent, exps / record.name, told["step"])
        put(told.get("code", {}), exps / record.name / MODEL_CODE)
        file = Path(temporary) / "told.json"  # what MLflow knows as model_config it makes params of the run
        file.write_text(json.dumps(facts))
        ours = [f"{name}=={version(name)}" for name in REQUIRED]
        required = [*ours, *(one for one in told.get("requires", []) if one.partition("==")[0] not in REQUIRED)]
        Model.log(
            None, pyfunc, model_id=made.model_id, run_id=run_id, step=told["step"], flavor_name="pyfunc.ModelFromCode",
            python_model=str(Path(__file__).with_name("served.py")), artifacts={"exps": str(exps), "told": str(file)},
            code_paths=[str(CODE)], pip_requirements=required,
            signature=_signature(example), input_example=example,
            metadata={"datadiet": {**facts, **_data(record)}},
        )  # fmt: skip


def _signature(example: np.ndarray) -> Any:
    """Images as the data set has them -> class, index, probabilities of all classes."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec

    outputs = [(DataType.string, "class"), (DataType.long, "index"), (Array(DataType.double), "probabilities")]
    inputs = TensorSpec(example.dtype, (-1, *example.shape[1:]))
    return ModelSignature(Schema([inputs]), Schema([ColSpec(kind, name) for kind, name in outputs]))


def _copy(run_dir: Path, target: Path, step: int) -> None:
    """What `open_run` needs of a run to load one checkpoint."""
    shutil.copytree(run_dir / "ckpts" / str(step), target / "ckpts" / str(step))
    for name in ("args.json", "kept.csv"):
        if (run_dir / name).exists():
            shutil.copy(run_dir / name, target)


def _data(record: Record) -> dict[str, Any]:
    return {"data": [{name: one[name] for name in ("name", "digest", "context")} for one in record.inputs]}


def _tags(record: Record) -> dict[str, str]:
    """Of the run, those that tell what it is; and its data."""
    own = {k: v for k, v in record.tags.items() if k.startswith("datadiet.") and k != "datadiet.root"}
    data = {f"datadiet.{name}": str(one[name]) for one in record.inputs for name in ("digest",)}
    return shown_tags(own | data)


@contextmanager
def _quietly() -> Iterator[None]:
    """What MLflow says while it tries a model, and puts on the path of modules, is gone after the `with` block."""
    path, logger = list(sys.path), logging.getLogger("mlflow.pyfunc")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        sys.path[:] = path
        logger.setLevel(level)
