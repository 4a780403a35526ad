"""Models of the user's own: of Linen and NNX, from files and packages, as networks that come with this package."""

from __future__ import annotations

import csv
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PROJECT, datadiet
from flax import linen as nn
from flax import nnx
from oracles import gradient_norms

import datadiet as dd
from datadiet.config import default_score_step, resolve
from datadiet.data.registry import load_dataset
from datadiet.errors import UserError
from datadiet.models import own as own_models
from datadiet.models.registry import MODELS, Model, build_model
from datadiet.scores.gradients import grad_norms, parameters_without_rule
from datadiet.training.loop import Entrant, fit, fit_runs
from datadiet.training.state import initial_state, on_device

SHORT = {"dataset": "digits", "augment": "false", "num_steps": 4, "save_steps": 4, "offline": "true"}
SHAPE = (8, 8, 1)


class Linen(nn.Module):
    """What NNX's below is, in Linen."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(not train, name="norm")(nn.Conv(4, (3, 3), 2, name="conv")(x)))
        x = x.reshape(len(x), -1, 4)
        x = nn.LayerNorm(name="layer_norm")(x + nn.MultiHeadDotProductAttention(2, name="attention")(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(3, name="hidden")(x)))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


class Nnx(nnx.Module):
    """Convolution, batch norm, attention, layer norm, dropout."""

    def __init__(self, rngs: nnx.Rngs, again: int = 1):
        self.conv = nnx.Conv(1, 4, (3, 3), 2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.layer_norm = nnx.LayerNorm(4, rngs=rngs)
        self.hidden = nnx.Linear(4, 3 if again == 1 else 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(48 if again == 1 else 64, 10, rngs=rngs)
        self.again = again  # how often the hidden layer is used

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = x.reshape(len(x), -1, 4)
        x = self.layer_norm(x + self.attention(x))
        for _ in range(self.again):
            x = nnx.relu(self.hidden(x))
        return self.head(self.dropout(x).reshape(len(x), -1))


def nnx_network(again: int = 1) -> dd.Network:
    return dd.Network.of(lambda key: Nnx(nnx.Rngs(key), again), SHAPE)


def batch(size: int = 5) -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(jax.random.key(1), (size, *SHAPE)), jnp.arange(size) % 10


def test_nnx_and_linen_give_the_same():
    one, other = nnx_network(), dd.Network.of(Linen(), SHAPE)
    variables, (images, _) = other.init(jax.random.key(0)), batch()
    assert jax.tree.map(jnp.shape, one.init(jax.random.key(0))) == jax.tree.map(jnp.shape, variables)
    given = [jax.jit(network.apply_with_features)(variables, images) for network in (one, other)]
    for found, expected in zip(*given):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    trained = [jax.jit(network.apply_training)(variables, images) for network in (one, other)]
    moved = [stats["norm"]["mean"] for _, stats in trained]
    np.testing.assert_allclose(moved[0] / 0.01, moved[1] / 0.01, rtol=1e-4)
    assert one.num_classes == other.num_classes == 10
    assert one.feature_layer() == other.feature_layer() == "head, of 48 values"


@pytest.mark.parametrize("again", [1, 2])
def test_gradient_norms_of_nnx_are_those_of_jax_grad(again):
    network = nnx_network(again)
    variables, (images, labels) = network.init(jax.random.key(0)), batch()
    shared = parameters_without_rule(network, variables, images)
    assert shared == ([] if again == 1 else ["hidden/bias", "hidden/kernel"])
    expected = gradient_norms(network, variables, images, labels)
    if shared:
        with pytest.warns(UserWarning, match="no single-pass rule for hidden"):
            found = jax.jit(grad_norms, static_argnums=0)(network, variables, images, labels)
    else:
        found = jax.jit(grad_norms, static_argnums=0)(network, variables, images, labels)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("network", [nnx_network(), dd.Network.of(Linen(), SHAPE)], ids=["nnx", "linen"])
def test_dropout_is_a_function_of_seed_and_step(network, monkeypatch):
    """So that a run that is continued, or trained beside others, ends with the same bytes."""
    digits, count = load_dataset("digits"), 4
    given = [dd.TrainConfig(augment=False, num_steps=count, log_steps=2, save_steps=2, run=run) for run in (0, 1)]
    configs = [resolve(config, digits.num_examples) for config in given]
    splits, kept = (on_device(digits, "train"), on_device(digits, "test")), np.arange(digits.num_examples)

    def alone(config, state):
        return [report.kept() for report in fit(network, *splits, kept, config, state)]

    def start(config):
        return initial_state(network, config, digits.num_examples)

    whole = [alone(config, start(config)) for config in configs]
    continued = alone(configs[0], whole[0][1].state)  # from step 2 on
    entrants = [Entrant(config, kept, start(config)) for config in configs]
    beside = {run: report.kept() for run, report in fit_runs(network, *splits, entrants)}
    for one, other in ((continued[-1], whole[0][-1]), (beside[0], whole[0][-1]), (beside[1], whole[1][-1])):
        jax.tree.map(np.testing.assert_array_equal, one.state.variables, other.state.variables)
    variables, (images, _) = whole[0][-1].state.variables, batch()
    train = jax.jit(network.apply_training)
    drawn = [train(variables, images, jax.random.key(seed))[0] for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


# --- named on the command line ----------------------------------------------------------------


def example() -> str:
    """The model of docs/models.md."""
    (code,) = re.findall(r"```python\n(# net\.py.*?)```", (PROJECT / "docs" / "models.md").read_text(), re.DOTALL)
    return code


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder, worked in, with the model of docs/models.md in a file of an odd name, and in a package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])  # folders of models stay there
    (tmp_path / "=nét, 1.py").write_text(example())
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "__init__.py").write_text("")
    (tmp_path / "my_models" / "nets.py").write_text("from .layers import HIDDEN\n" + example())
    (tmp_path / "my_models" / "layers.py").write_text("HIDDEN = 64\n")
    return tmp_path


def test_the_example_of_the_docs_trains_scores_and_is_listed(own):
    given = {**SHORT, "model": "=nét, 1.py:network", "width": 16}
    datadiet("full_data", own, **given)
    run = dd.open_run(own / "exps/full_data/run_0")
    assert run.config.model == given["model"]
    assert re.fullmatch("[0-9a-f]{64}", str(run.config.model_sha256))
    for kind in ("grad_norm", "prototype", "l2_error"):
        told = datadiet("score", own, type=kind, step=4, offline="true").output
    assert "Features" not in told
    images, labels = (run.logits, load_dataset("digits").train_labels)
    values = np.load(own / "exps/full_data/run_0/grad_norm_scores/ckpt_4.npy")
    pixels = load_dataset("digits").train_images[:3]
    network, variables = run.network, run.variables(4)
    normalised = (pixels / 255 - np.array(run.data.mean)) / np.array(run.data.std)
    expected = gradient_norms(network, variables, jnp.asarray(normalised, jnp.float32), jnp.asarray(labels[:3]))
    np.testing.assert_allclose(values[:3], expected, rtol=1e-4)
    assert images(pixels, 4).shape == (3, 10)
    datadiet("results", own, exps_path=own / "exps")
    (row,) = csv.DictReader((own / "results.csv").open())
    assert row["Neural network"] == "'=nét, 1.py:network"


def test_the_loop_in_python_of_the_docs_works(own, capsys):
    (own / "net.py").write_text(example())
    text = (PROJECT / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(import datadiet as dd\n.*?)```", text, re.DOTALL)
    found: dict = {}
    exec(code, found)
    assert len(found["ids"]) == 719
    assert found["last"].step == 110
    assert capsys.readouterr().out.splitlines()[-1].startswith("110 0.")


def test_each_run_draws_weights_of_its_own(own):
    network = build_model("=nét, 1.py:network", 10, SHAPE)
    one, same, other = (network.init(jax.random.key(seed))["params"]["head"]["kernel"] for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert build_model("=nét, 1.py:network", 10, SHAPE) is network


def forget() -> None:
    """What this process has imported, as if it were another."""
    own_models._imported.clear()
    own_models._siblings.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_models"]:
        del sys.modules[name]


def test_changed_code_is_refused_by_name(own):
    given = {**SHORT, "model": "my_models.nets:network", "num_steps": 4}
    datadiet("full_data", own, **given)
    before = (own / "my_models" / "layers.py").read_text()
    (own / "my_models" / "layers.py").write_text("HIDDEN = 64  # other code\n")
    refused = datadiet("score", own, 2, type="l2_error", step=4, offline="true").stderr
    assert "was trained with model=my_models.nets:network: its code (my_models/__init__.py, my_models/lay" in refused
    assert "Put its code back as it was, or train the run again with --overwrite true" in refused
    assert "begin it anew" in datadiet("full_data", own, 2, resume="true", **given).stderr
    forget()
    refused = datadiet("full_data", own, 2, resume="true", **given).stderr
    assert "holds a run made otherwise (the code of my_models.nets:network (model_sha256)" in refused
    told = json.loads((own / "exps/full_data/run_0/args.json").read_text())["model_sha256"]
    refused = datadiet("full_data", own, 2, exp="other", model_sha256=told, **given).stderr
    assert "is another" in refused
    (own / "my_models" / "layers.py").write_text(before)
    forget()
    datadiet("score", own, type="l2_error", step=4, offline="true")


FILES = {
    "broken": "1 / 0",
    "nothing": "def other(num_classes): pass",
    "raises": "def network(num_classes): raise ValueError('no such thing')",
    "wrong": "def network(num_classes): return 3",
    "needs": "def network(num_classes, depth): pass",
    "no_syntax": "def network(:",
    "plain": "from flax import linen as nn\ndef network(num_classes): return nn.Sequential([nn.Dense(num_classes)])",
    "few": "from flax import linen as nn\nclass F(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n"
    "        return nn.Dense(7)(x.reshape(len(x), -1))\ndef network(width): return F()",
    "half": "from flax import linen as nn\nclass H(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n"
    "        return nn.Dense(10, dtype='bfloat16')(x.reshape(len(x), -1))\ndef network(): return H()",
    "asks": "from flax import linen as nn\nclass A(nn.Module):\n    def __call__(self, x, mask): return x\n"
    "def network(): return A()",
    "always": "from flax import linen as nn\nclass D(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n"
    "        x = nn.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1))\n        return nn.Dense(10)(x)\n"
    "def network(): return D()",
    "no_dense": "from flax import linen as nn\nclass C(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n"
    "        return nn.Conv(10, (8, 8), padding='VALID')(x).reshape(len(x), -1)\ndef network(): return C()",
}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("broken", {}, r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("nothing", {}, "has no function network; there are: other"),
        ("absent", {}, "no file .*absent.py; expected package.module:function or FILE.py:function"),
        ("raises", {}, r"called with \(num_classes=10\): ValueError: no such thing"),
        ("wrong", {}, "got a value of type int; expected a Flax Linen module, a Flax NNX module or a dd.Network"),
        ("needs", {}, "its function needs depth, which nothing gives; expected some of num_classes"),
        ("no_syntax", {}, "cannot be read"),
        ("plain", {"width": 3}, "width=3: .* does not name width, so it has no effect"),
        ("plain", {"compute_dtype": "bfloat16"}, "does not name dtype, so it has no effect"),
        ("plain", {}, r"gives \[2, 8, 8, 10\]; expected logits float32 \[2, C\]"),
        ("few", {}, "its function needs a width"),
        ("few", {"width": 1}, "its network gives 7 logits; the data has 10 classes"),
        ("half", {}, "gives logits of type bfloat16; expected float32"),
        ("asks", {}, r"A is called with \(x, mask\); expected images alone, or images and train"),
        ("always", {}, "InvalidRngError"),
    ],
)
def test_what_is_no_network_is_refused_before_work_begins(tmp_path, monkeypatch, name, given, message):
    monkeypatch.chdir(tmp_path)
    if name in FILES:
        (tmp_path / f"{name}.py").write_text(FILES[name])
    refused = datadiet("full_data", tmp_path, 2, model=f"{name}.py:network", **given, **SHORT).stderr
    assert re.search(message, " ".join(refused.split())), refused
    assert not (tmp_path / "exps/full_data/run_0").exists()


@pytest.mark.parametrize("model", ["no.such.module:network", ":network", "a.py:", "a-b:c", "vgg", "json:loads"])
def test_a_model_that_cannot_be_is_refused(model):
    with pytest.raises(UserError, match="model='?"):
        build_model(model, 10, SHAPE)


def test_features_are_refused_where_there_are_none_before_a_study_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conv.py").write_text(FILES["no_dense"])
    given = {**SHORT, "model": "conv.py:network"}
    study = {"score_types": "prototype", "score_runs": 1, "eval_runs": 1, "fractions": 0.5}
    refused = datadiet("study", tmp_path, 2, **study, **given).stderr
    assert "prototype needs features, and model=conv.py:network gives none: C has no dense layer" in refused
    assert not (tmp_path / "exps").exists()


def test_a_network_may_be_larger_than_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import datadiet as dd\ndef network(num_classes, width=4):\n"
    (tmp_path / "padded.py").write_text(code + "    return dd.build_model('mlp', num_classes, (16, 16, 1), width)")
    datadiet("full_data", tmp_path, model="padded.py:network", **SHORT)
    run = dd.open_run(tmp_path / "exps/full_data/run_0")
    assert run.data.image_shape == [16, 16, 1]
    assert run.network.image_shape == (16, 16, 1)


# --- the loop in Python -----------------------------------------------------------------------


def test_a_training_in_python_has_the_bytes_of_an_entry_point(tmp_path):
    given = {
        "num_steps": 22,
        "save_steps": 11,
        "augment": False,
        "width": 16,
        "model": "mlp",
        "trajectory": ("forget", "aum"),
    }
    typed = {**given, "trajectory": "forget,aum", "augment": "false"}
    datadiet("random_subset", tmp_path, dataset="digits", size=500, exp="a", offline="true", **typed)
    run, digits = dd.open_run(tmp_path / "exps/a/size_500/run_0"), dd.load_dataset("digits")
    network = dd.build_model("mlp", 10, digits.image_shape, 16)
    config = dd.TrainConfig(selector="random", size=500, **given)
    reports = list(dd.train(config, network, digits))
    assert [report.step for report in reports] == [0, 11, 22]
    for report in reports:
        jax.tree.map(np.testing.assert_array_equal, report.variables, run.variables(report.step))
    for name, values in reports[-1].scores.items():
        np.testing.assert_array_equal(values, np.load(run.path / f"{name}_scores/ckpt_22.npy"))
    assert reports[-1].metrics["test_acc"] == run.summary.test_acc == reports[-1].correct.mean(dtype=np.float32)
    kept = np.flatnonzero(~np.isnan(reports[-1].scores["aum"]))
    *_, last = dd.train(dd.TrainConfig(**given), network, digits, kept=kept[::-1])
    jax.tree.map(np.testing.assert_array_equal, last.variables, reports[-1].variables)
    by_features = {"selector": "k_center", "size": 40, "features_run": str(run.path), "num_steps": 1, "augment": False}
    found = []
    for step in (None, default_score_step(run.config)):  # as commands find it
        *_, last = dd.train(dd.TrainConfig(**by_features, features_step=step), network, digits)
        found.append(last)
    jax.tree.map(np.testing.assert_array_equal, *(last.variables for last in found))


@pytest.mark.parametrize(
    ("config", "kept", "message"),
    [
        ({"selector": "keep_max", "size": 9}, None, "selector=keep_max needs scores=PATH; or give ids: kept="),
        ({}, [1, 1], r"kept: got int64 \[2\]; expected different ids from 0 to 1437"),
        ({"size": 3, "selector": "random"}, [1, 2], "kept has 2 ids, size=3"),
        ({"lr": -1.0}, None, "lr=-1.0"),
    ],
)
def test_a_training_that_cannot_be_is_refused_at_once(config, kept, message):
    digits = dd.load_dataset("digits")
    network = build_model("mlp", 10, digits.image_shape, 4)
    with pytest.raises(UserError, match=message):
        dd.train(dd.TrainConfig(**config), network, digits, kept=kept)
    with pytest.raises(UserError, match="the network gives 7 logits"):
        dd.train(dd.TrainConfig(), build_model("mlp", 7, digits.image_shape, 4), digits)


def test_a_registered_model_with_dropout_trains_side_by_side(tmp_path, monkeypatch):
    class Registered(nn.Module):
        num_classes: int
        width: int
        dtype: object

        @nn.compact
        def __call__(self, x, train):
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1))))
            return nn.Dense(self.num_classes)(x)

    monkeypatch.setitem(MODELS, "dropping", Model(Registered, 8, None, side_by_side=True))
    datadiet("full_data", tmp_path, model="dropping", runs="0-1", **SHORT)
    datadiet("full_data", tmp_path, model="dropping", run=1, exp="alone", **SHORT)
    one, other = (dd.open_run(tmp_path / "exps" / exp / "run_1").variables(4) for exp in ("full_data", "alone"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
