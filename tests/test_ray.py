"""Jobs on Ray: machines are looked at before the first job, and whoever asks it to stop is heard. Ray is a pretended
one here; tests/test_study.py has a study on the real one where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from datadiet.errors import Interrupted, UserError
from datadiet.study import ray_engine
from datadiet.study.engine import Event
from datadiet.study.ray_engine import Cluster, Place, do
from datadiet.study.spec import Job
from datadiet.tracking.record import Record

JOB = Job(name="a", exp="s")


class Errors:
    """ray.exceptions."""

    class RayError(Exception): ...

    class TaskCancelledError(RayError): ...

    class RayTaskError(RayError): ...


class PretendedRay:
    """Machines by name, each with what a task that is called on it sees."""

    exceptions = Errors

    def __init__(self, **machines: Callable[[Callable], object]) -> None:
        self.machines, self.running = machines, True
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        self.util = SimpleNamespace(scheduling_strategies=strategies)

    def init(self, *_, **__) -> None: ...

    def shutdown(self) -> None:
        self.running = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict]:
        here = {"NodeManagerAddress": "10.0.0.1", "Alive": True}
        alive = [here | {"NodeID": m, "NodeManagerHostname": m, "Resources": {"CPU": 2.0}} for m in self.machines]
        head = here | {"NodeID": "head", "NodeManagerHostname": "head", "Resources": {}}  # does no jobs
        return [*alive, head, head | {"Alive": False, "Resources": {"CPU": 2.0}}]

    def remote(self, **_):
        def task(function):
            def on(scheduling_strategy):
                return SimpleNamespace(remote=lambda *given: (self.machines[scheduling_strategy], function, given))

            return SimpleNamespace(options=on)

        return task

    def wait(self, asked, num_returns, timeout):
        return [task for task in asked if task[0] is not silent], []

    def get(self, task):
        machine, function, given = task
        return machine(lambda place=given[0]: function(place))


def good(look):
    return look()


def silent(look):
    raise AssertionError


def without_the_package(look):
    raise Errors.RayTaskError("a page\nModuleNotFoundError: No module named 'datadiet'")


def without_the_folder(look):
    return look(Place("/nowhere", "exps/s/mlflow_run.json", "u", None, ray_engine.datadiet.__version__))


@pytest.fixture
def setting(tmp_path, monkeypatch) -> SimpleNamespace:
    """Of a study that has begun."""
    monkeypatch.chdir(tmp_path)
    mirror = Path("exps/s/mlflow_run.json")
    mirror.parent.mkdir(parents=True)
    Record(mirror, "study", "s", {}, {}).save()
    Path("mlflow.db").touch()
    return SimpleNamespace(
        mirror=mirror, offline=False, store=f"sqlite:///{tmp_path}/mlflow.db", command="so", devices="1"
    )


def begun(monkeypatch, setting, ray: PretendedRay) -> Cluster:
    monkeypatch.setattr(ray_engine, "load_ray", lambda: ray)
    return Cluster(setting, None, 1)


def test_machines_that_see_all_of_it_are_taken(monkeypatch, setting):
    assert begun(monkeypatch, setting, PretendedRay(one=good, two=good)).free() == 1


def test_machines_that_cannot_do_the_jobs_are_named_before_the_first(monkeypatch, setting):
    monkeypatch.setattr(ray_engine, "ANSWER_SECONDS", 0.1)
    ray = PretendedRay(one=good, two=without_the_folder, three=without_the_package, four=silent)
    with pytest.raises(UserError) as refused:
        begun(monkeypatch, setting, ray)
    assert str(refused.value).startswith(
        "Machines of the Ray cluster that cannot do the jobs of this study:\n"
        "  four (10.0.0.1): did not answer within 0 seconds\n"
        "  three (10.0.0.1): cannot look (ModuleNotFoundError: No module named 'datadiet')\n"
        "  two (10.0.0.1): does not see /nowhere/exps/s\n"
        "Every machine needs the study's folder at the same path (name one that all share with --root FOLDER), "
    )
    assert not ray.running


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"version": "0.0.1"}, f"has datadiet {ray_engine.datadiet.__version__}, the study 0.0.1"),
        ({"uid": "another"}, "sees another study in "),
        ({"folder": "/nowhere"}, "does not see /nowhere/exps/s"),
        ({"store": "sqlite:////nowhere/mlflow.db"}, "does not see the MLflow store in /nowhere/mlflow.db; a server"),
        ({"store": "http://127.0.0.1:1"}, None),
        ({"store": None}, None),
    ],
)
def test_what_a_machine_lacks(setting, change, told):
    lacking = replace(Place.of(setting), **change).lacking()
    assert lacking == told or (lacking or "").startswith(told or "?")


def test_a_machine_that_came_later_refuses_its_job(setting):
    (event,) = do(JOB, setting, replace(Place.of(setting), folder="/nowhere"))
    assert (event.kind, "does not see /nowhere/exps/s" in event.text) == ("refused", True)


def test_a_ctrl_c_as_a_job_begins_or_ends_is_no_mistake(monkeypatch, setting):
    setting.context = lambda said: None

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_engine, "attempt", interrupted)
    assert do(JOB, setting, Place.of(setting))[0].kind == "interrupted"

    cluster = begun(monkeypatch, setting, PretendedRay(one=good))

    def torn(reference):
        raise Errors.RayTaskError("KeyboardInterrupt")

    cluster.ray.get, cluster.ray.cancel = torn, lambda reference, force: None
    assert [event.kind for event in cluster._events("r", JOB)] == ["failed"], "nobody asked it to stop"
    cluster.doing["r"] = JOB
    cluster.stop()
    assert [event.kind for event in cluster._events("r", JOB)] == ["interrupted"]


def test_sigterm_while_ray_begins_can_go_on(monkeypatch, setting):
    """Ray takes the signal for itself and leaves by SystemExit."""
    ray = PretendedRay(one=good)
    monkeypatch.setattr(ray, "init", lambda *_, **__: os.sys.exit(15))
    with pytest.raises(Interrupted, match=r"^Stopped before the first job\. Continue: so$"):
        begun(monkeypatch, setting, ray)


def test_progress_of_a_task_is_told(monkeypatch, setting):
    setting.context = lambda said: said
    monkeypatch.setattr(ray_engine, "attempt", lambda job, said: (said.say("a line"), Event(job, "done"))[1])
    assert do(JOB, setting, Place.of(setting)) == [Event(JOB, "said", "a line"), Event(JOB, "done")]
