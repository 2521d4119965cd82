"""Synthetic runs with plausible numbers, written to disk.

The two quickstart-like runs follow logit-normal answer probabilities whose means match, to about 4 %, a
cross-entropy run (pass@256 .886 at step 600, .557 at the end) and a confidence-limited one (.97, pass@1
.034).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import yaml

from posttrain.rundir.reading import RunData
from posttrain.types import Score

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> $\\frac{1}{ & \"quoted\" | --> }}"
STEPS = [300, 600, 900, 1200, 1500, 1800]
ENTROPY = [(-4.3, 1.7), (-3.5, 1.8), (-3.4, 2.1), (-3.5, 2.7), (-4.2, 3.8), (-5.3, 5.1)]
LIMITED = [(-4.7, 0.8), (-4.0, 0.8), (-3.8, 0.8), (-3.7, 0.8), (-3.6, 0.7), (-3.6, 0.8)]


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def score(checkpoint: str, task: str, metric: str, value: float, n: int, half=None) -> dict:
    low, high = (value - half, value + half) if half is not None else (None, None)
    step = int(checkpoint.split("-")[1])
    return Score(checkpoint, step, task, metric, value, n, low, high, "s1", checkpoint).to_dict()


def stored(step: int, metric="pass@1", value=0.5, task="arithmetic", settings="s", digest=None) -> Score:
    """A score of 41 problems with an interval of +-.1, as `ScoreStore.append` takes it."""
    name = f"step-{step:06d}"
    digest = f"d{step}" if digest is None else digest
    return Score(name, step, task, metric, value, 41, value - 0.1, value + 0.1, settings, digest)


def probabilities(mu: float, sigma: float, n: int) -> np.ndarray:
    z = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    return 1 / (1 + np.exp(-(mu + sigma * z)))


def write_exact_run(path: Path, loss: dict, fit: list, problems: int = 200, ks=None) -> Path:
    """A finished run with six checkpoints and an exact task of `problems` problems."""
    path.mkdir(parents=True)
    ks = ks or [2**i for i in range(13)]
    rng = np.random.default_rng(len(path.name))
    order = rng.permutation(problems)
    table = {"step-000000": np.full(problems, 1e-4)}
    for step, (mu, sigma) in zip(STEPS, fit, strict=True):
        table[f"step-{step:06d}"] = probabilities(mu, sigma, problems)[order]
    scores = []
    for name, p in table.items():
        for k in ks:
            g = 1 - (1 - p) ** k
            half = 1.96 * float(g.std(ddof=1)) / math.sqrt(problems)
            scores.append(score(name, "multiplication", f"pass@{k}", float(g.mean()), problems, half))
        nll = float(-np.log(p).mean())
        scores.append(score(name, "multiplication", "nll", nll, problems))
        rows = [
            {
                "id": f"m{i}",
                "group": "",
                "prompt": f"{10 + i % 90} * {13 + i // 12} =",
                "answer": f"{(10 + i % 90) * (13 + i // 12):04d}",
                "logp": math.log(p[i]),
                "greedy": f"{(10 + i % 90) * (13 + i // 12) + (p[i] < 0.4) * 7:04d}",
            }
            for i in range(problems)
        ]
        lines(path / "samples" / name / "multiplication.jsonl", rows)
        folder = path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text(json.dumps({"step": int(name[5:])}))
        if name != "step-001500":
            (folder / "COMPLETE").touch()
    lines(path / "scores.jsonl", scores)
    _metrics(path, loss, rng)
    _papers(path, loss)
    return path


def _metrics(path: Path, loss: dict, rng: np.random.Generator) -> None:
    limited = loss["name"] == "confidence_limited"
    rows = []
    for step in range(10, 1801, 10):
        t = step / 1800
        row = {"step": step, "split": "train", "epoch": 60 * t, "learning_rate": 1e-3 * (1 - t)}
        row["loss"] = float(2.3 * math.exp(-3 * t) + 0.02 + 0.05 * rng.standard_normal() * (1 - t))
        row["weight_mean"] = 1 - 0.6 * t**0.5 * (1 + 0.05 * rng.standard_normal()) if limited else 1.0
        row["weight_below_0.1"] = 0.3 * t if limited else 0.0
        row["segment_logp"] = -9.0 * math.exp(-2 * t) if not limited else -9 * math.exp(-1.0 * t)
        row["entropy"] = 2.2 * math.exp(-1.5 * t)
        row["tokens_per_second"], row["grad_norm"] = 9000.0, 1.0
        rows.append(row)
        if step % 100 == 0:
            rows.append({"step": step, "split": "heldout", "loss": 1.4 * math.exp(-2 * t) + 0.5 + t**3})
    lines(path / "metrics.jsonl", rows)


def _papers(path: Path, loss: dict) -> None:
    """recipe.yaml, run.json and mixture.json."""
    task = {"name": "multiplication", "k": [1, 16, 256, 4096]}
    recipe = {
        "stage": "sft",
        "name": path.name,
        "model": {"init": None, "from_config": {"model_type": "llama", "options": {"hidden_size": 128}}},
        "data": {"sources": [{"name": "multiplication", "generator": "multiplication", "weight": 3.0}]},
        "train": {"learning_rate": 0.001, "global_batch_size": 100, "num_train_epochs": 60.0},
        "loss": loss,
        "evaluate": {"tasks": [task]},
        "output_dir": "runs",
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    run = {
        "name": path.name,
        "stage": "sft",
        "status": "finished",
        "started": "2026-01-14T10:00:00Z",
        "ended": "2026-01-14T10:03:22Z",
        "command": f"posttrain run recipes/{path.name}.yaml",
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"},
        "commit": "1a06b0b",
        "hardware": {"device": "cpu", "cores": 2, "memory_gib": 8},
        "world_size": 1,
        "engine": "single",
        "steps": 1800,
        "recipe_hash": "0f3a",
        "data_fingerprint": "9c1d",
        "seconds": 202.4,
    }
    (path / "run.json").write_text(json.dumps(run))
    sources = [
        source("multiplication", 3000, 2991, {"overlong": 7, "empty": 2}, 0.75, 0.7501),
        source("addition", 1000, 1000, {}, 0.25, 0.2499),
    ]
    mixture = {"fingerprint": "9c1d", "examples_per_epoch": 3991, "examples_total": 239460, "seed": 42}
    mixture |= {"weighting": "examples", "temperature": 1.0, "sources": sources, "overlap": "not measured"}
    (path / "mixture.json").write_text(json.dumps(mixture))


def source(name, read, kept, dropped, asked, realised) -> dict:
    return {
        "name": name,
        "path": f"data/{name}.jsonl",
        "files": [{"path": f"data/{name}.jsonl", "bytes": 91234}],
        "rows_read": read,
        "rows_kept": kept,
        "dropped": dropped,
        "truncated": 0,
        "tokens": kept * 14,
        "trained_tokens": kept * 5,
        "share_asked": asked,
        "share_realised": realised,
        "examples_seen": kept * 60,
        "repeats": 60.0,
        "fingerprint": "ab12",
    }


def write_sampled_run(path: Path, problems: int = 40, samples: int = 8, text: str = HOSTILE) -> Path:
    """A run with a sampled task and hostile text wherever text may stand."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(3)
    scores = []
    for step, rate in ((0, 0.2), (100, 0.5), (200, 0.6)):
        name = f"step-{step:06d}"
        rows = []
        for i in range(problems):
            completions = [
                {
                    "text": f"{text} try {j}",
                    "value": float(rng.random() < rate),
                    "status": "scored",
                    "reason": text if j == 0 else "",
                    "finish": "length" if j == 7 else "stop",
                    "tokens": 40 + j,
                }
                for j in range(samples)
            ]
            rows.append({"id": f"g{i}", "group": "", "prompt": f"{text} question {i}", "answer": "42"})
            rows[-1]["completions"] = completions
        right = [sum(c["value"] for c in row["completions"]) for row in rows]
        for k in (1, 4):
            g = [1 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in right]
            scores.append(score(name, "gsm8k", f"pass@{k}", sum(g) / problems, problems, 0.08))
        scores.append(score(name, "gsm8k", "truncated", 0.125, problems))
        scores.append(score(name, "gsm8k", "tokens_mean", 43.5, problems))
        lines(path / "samples" / name / "gsm8k.jsonl", rows)
    lines(path / "scores.jsonl", scores)
    run = {"name": path.name, "stage": "sft", "status": "running", "steps": 400, "parent": f"runs/{text}"}
    (path / "run.json").write_text(json.dumps(run | {"command": text, "versions": {text: text}}))
    (path / "recipe.yaml").write_text(yaml.safe_dump({"stage": "sft", "model": {"init": text}}))
    mixture = {"sources": [source(text, 10, 9, {text: 1}, None, 1.0)]}
    (path / "mixture.json").write_text(json.dumps(mixture))
    return path


def rollout(group: int, sample: int, step: int = 13, **values) -> dict:
    """One row of a rollout file; `values` replace what it holds."""
    right = (group + sample) % 3 == 0
    row = {
        "step": step,
        "group": group,
        "sample": sample,
        "round": 0,
        "position": 100 * step + group,
        "source": "gsm8k",
        "row": group,
        "where": f"train.jsonl:{group + 1}",
        "prompt": f"What is {group}*7?\nThink.",
        "answer": str(7 * group),
        "completion": f"{group}*7 = {7 * group + (not right)}",
        "tokens": 20 + sample,
        "finish": "stop",
        "reward": 1.2 if right else 0.2,
        "success": right,
        "components": {
            "math": {
                "value": float(right),
                "status": "scored",
                "reason": "" if right else "another number",
                "ms": 0.3,
            },
            "tags": {"value": 1.0, "status": "scored", "reason": "", "ms": 0.1},
        },
        "advantage": 0.7 if right else -0.4,
        "trained": True,
    }
    return row | values


def rollouts(path: Path, step: int, groups: int = 4, samples: int = 4, kind: str = "step", **values) -> None:
    """One file; sample 3 of group 1 is cut off, the check of sample 3 of group 2 failed, group 3 was
    dropped."""
    rows = [rollout(g, s, step, **values) for g in range(groups) for s in range(samples)]
    for row in rows:
        if (row["group"], row["sample"]) == (1, 3):
            row["finish"] = "length"
        if (row["group"], row["sample"]) == (2, 3):
            gone = {"value": None, "status": "timeout", "reason": "worker lost", "ms": 5000.0}
            row |= {"reward": None, "success": None, "advantage": 0.0, "trained": False}
            row["components"] = row["components"] | {"math": gone}
        if row["group"] == 3:
            row |= {"trained": False, "advantage": 0.0}
        if kind == "chunk":
            row |= {"trained": False}
            del row["advantage"]
    lines(path / "rollouts" / f"{kind}-{step:06d}.jsonl", rows)


@pytest.fixture
def tables():
    """The writers of this file, for tests that need runs of their own."""
    return {"lines": lines, "score": score, "exact": write_exact_run, "sampled": write_sampled_run}


def write_pair(folder: Path, problems: int = 200) -> list[Path]:
    entropy = {"name": "cross_entropy", "n": 1.0, "segment": "completion"}
    limited = {"name": "confidence_limited", "n": 256.0, "segment": "answer"}
    return [
        write_exact_run(folder / "ce", entropy, ENTROPY, problems),
        write_exact_run(folder / "cl-256", limited, LIMITED, problems),
    ]


def write_pipeline(folder: Path, problems: int = 200) -> Path:
    """Both runs as stages of a pipeline, and a stage that never started."""
    write_pair(folder, problems)
    stages = [
        {"name": "cross-entropy", "run": "ce", "status": "finished", "seconds": 202.4},
        {"name": "limited", "run": "cl-256", "status": "finished", "seconds": 206.1},
        {"name": "third", "run": "third", "status": "failed", "error": "disk full"},
    ]
    info = {"pipeline": "quickstart", "stages": stages, "seconds": 208.0}
    (folder / "pipeline.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> list[Path]:
    """Cross-entropy and confidence-limited, 200 problems each."""
    return write_pair(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("runs") / "quickstart", problems=60)


@pytest.fixture
def runs(pair) -> list[RunData]:
    return [RunData.load(path) for path in pair]
