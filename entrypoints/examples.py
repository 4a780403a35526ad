"""Two examples of each command, as options by name; they stand below its help."""

from __future__ import annotations

from typing import Any

MINE = {"dataset": "folder:PHOTOS", "image_size": 64}
KEPT = "exps/study/kept/keep_max_l2_error_500.csv"

EXAMPLES: dict[str, tuple[dict[str, Any], ...]] = {
    "main": ({}, {"dry_run": True}),
    "study": ({**MINE, "dry_run": True}, {"plan": "plan.yaml", "eval_runs": "auto"}),
    "full_data": ({"dataset": "digits", "model": "mlp", "augment": False}, {"runs": "0-9", "resume": True}),
    "random_subset": ({"size": "50%"}, {"size": 25000, "run": 3}),
    "keep_max": ({"size": "50%"}, {"size": 25000, "score_type": "grad_norm"}),
    "offset_subset": ({"size": "50%", "offset": 500}, {"size": 25000, "offset": 500, "score_type": "forget"}),
    "subset": (
        {"selector": "ccs", "size": "50%", "cutoff": 0.1}, {"selector": "manifest", "manifest": "PATH/kept.csv"},
    ),
    "select": ({"selector": "keep_max", "size": "50%"}, {"selector": "moderate", "size": 25000}),
    "export": (
        {"kept": KEPT, "output": "kept.csv"}, {"kept": KEPT, "format": "links", "output": "subset/train"},
    ),
    "score": ({"run": 0}, {"run": 0, "type": "grad_norm", "step": 7800}),
    "mean_score": ({"n_runs": 10}, {"type": "forget", "combine": "median"}),
    "analyze": ({"run": 0}, {"run": 0, "spawn": "none", "groups": 10}),
    "report": ({"exp": "main"}, {"exp": "main", "format": "json", "margin": 1}),
    "predictions": (
        {"files": "run0.npy,run1.npy", "step": 7800, "dataset": "cifar10"},
        {"files": "logits/epoch_*.npz", "step": 7800, "type": "forget,aum", "dataset": "cifar10"},
    ),
    "decide": (
        {"results": "results.csv", "num_examples": 50000, "margin": 1},
        {"results": "results.csv", "dataset": "cifar10", "model": "my network"},
    ),
    "inspect": (MINE, {**MINE, "model": "resnet18_lowres"}),
    "prepare_data": ({"dataset": "cifar10"}, {"dataset": "cifar10", "archive": "PATH", "download": False}),
    "sync": ({}, {"exp": "study"}),
    "results": ({}, {"exps_path": "exps", "output": "results.csv"}),
}  # fmt: skip
