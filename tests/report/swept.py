"""Synthetic sweeps on disk, as `posttrain sweep` lays them out."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import yaml

from posttrain.rundir.sweeps import sealed
from tests.rundir.written import lines, score

NS, RATES, SEEDS = (1.0, 16.0, 256.0), (0.0003, 0.001), (0, 1, 2)
KS = [2**i for i in range(9)]


def write_sweep(
    root: Path, ns=NS, rates=RATES, seeds=SEEDS, problems: int = 40, steps=(0, 300, 600), ks=KS
) -> Path:
    """A finished sweep with a supervised run for each of `ns`, `rates` and `seeds`."""
    entries, stages = [], []
    for seed, n, rate in itertools.product(seeds, ns, rates):
        name = f"n-{n:g}_learning_rate-{rate:g}_seed-{seed}"
        write_swept(root / name, n, rate, seed, problems, steps, ks)
        values = {"loss.n": n} | ({"train.learning_rate": rate} if len(rates) > 1 else {})
        entries.append({"run": name, "stage": "", "values": values, "seed": seed})
        stages.append({"name": name, "run": name, "status": "finished", "seconds": 12.0})
    keys = {"loss.n": [*ns]} | ({"train.learning_rate": [*rates]} if len(rates) > 1 else {})
    facts = {"sweep": root.name, "recipe": "r.yaml", "keys": keys, "fixed": {}, "seeds": [*seeds]}
    list_runs(root, facts, entries)
    (root / "pipeline.json").write_text(json.dumps({"pipeline": root.name, "stages": stages}))
    return root


def write_swept(path: Path, n: float, rate: float, seed: int, problems: int, steps, ks) -> None:
    """A run whose problems get easier with the rate, more alike with `n`, and differ a little by seed."""
    rng = np.random.default_rng([int(n), round(rate * 1e4), seed])
    z = np.random.default_rng(0).standard_normal(problems)
    scores = []
    for step in steps:
        progress = step / max(steps[-1], 1)
        spread = 0.8 + 3 * progress / math.log2(2 * n)
        mu = -6 + 3 * progress * (1.2 if rate > 5e-4 else 1) + 0.2 * rng.standard_normal()
        p = 1 / (1 + np.exp(-(mu + spread * z + 0.2 * rng.standard_normal(problems))))
        name = f"step-{step:06d}"
        for k in ks:
            g = 1 - (1 - p) ** k
            half = 1.96 * float(g.std(ddof=1)) / math.sqrt(problems)
            scores.append(score(name, "multiplication", f"pass@{k}", float(g.mean()), problems, half))
        rows = [
            {"id": f"m{i}", "prompt": f"{i} * 2 =", "answer": f"{2 * i}", "logp": math.log(p[i])}
            for i in range(problems)
        ]
        lines(path / "samples" / name / "multiplication.jsonl", rows)
    lines(path / "scores.jsonl", scores)
    logged = [
        {"step": s, "split": "train", "loss": 2 * math.exp(-3 * s / 600) + 0.1 * rng.standard_normal()}
        | {"entropy": math.exp(-s / 600), "learning_rate": rate, "weight_mean": n ** (-0.1 * s / 600)}
        for s in range(10, 601, 10)
    ]
    lines(path / "metrics.jsonl", logged)
    recipe = {
        "stage": "sft",
        "name": path.name,
        "loss": {"name": "confidence_limited", "n": n},
        "train": {"learning_rate": rate, "seed": seed},
        "evaluate": {"tasks": [{"name": "multiplication", "k": list(ks)}]},
        "output_dir": str(path.parent),
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    info = {"name": path.name, "stage": "sft", "status": "finished", "seconds": 12.0, "steps": 600}
    info |= {"started": "2026-01-14T10:00:00Z", "recipe_hash": hash_of(recipe)}
    (path / "run.json").write_text(json.dumps(info))
    sources = [{"name": "tables", "path": "data/a.jsonl", "rows_read": 100, "rows_kept": 90}]
    (path / "mixture.json").write_text(json.dumps({"fingerprint": f"f{seed}", "sources": sources}))


def write_chains(root: Path, ks=(1, 8), seeds=(0, 1)) -> Path:
    """A sweep of a pipeline: a supervised run a seed, and from each one an RLVR run for each of `ks`."""
    entries = []
    for seed in seeds:
        write_swept(root / f"sft_seed-{seed}", 1.0, 0.001, seed, 30, (0, 300), KS)
        entries.append({"run": f"sft_seed-{seed}", "stage": "sft", "values": {}, "seed": seed})
        for k in ks:
            path = root / f"rlvr_k-{k}_seed-{seed}"
            write_swept(path, 4.0 * k, 0.001, seed, 30, (0, 300), KS)
            recipe = {"stage": "rlvr", "name": path.name, "policy": {"loss": "grpo", "k": k}}
            recipe |= {"model": {"init": f"runs/{root.name}/sft_seed-{seed}@last"}, "train": {"seed": seed}}
            (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            info = json.loads((path / "run.json").read_text()) | {"stage": "rlvr"}
            info["recipe_hash"] = hash_of(recipe)
            info["parent"] = {"run": f"runs/{root.name}/sft_seed-{seed}", "checkpoint": "step-000300"}
            (path / "run.json").write_text(json.dumps(info))
            entries.append({"run": path.name, "stage": "rlvr", "values": {"rlvr.policy.k": k}, "seed": seed})
    facts = {"sweep": root.name, "recipe": "p.yaml", "keys": {"rlvr.policy.k": [*ks]}, "seeds": [*seeds]}
    list_runs(root, facts, entries)
    stages = [{"name": e["run"], "run": e["run"], "status": "finished"} for e in entries]
    (root / "pipeline.json").write_text(json.dumps({"pipeline": root.name, "stages": stages}))
    return root


def hash_of(recipe: dict) -> str:
    """As `recipe_hash`, equal for runs that differ in their name only."""
    decides = {key: value for key, value in recipe.items() if key not in ("name", "output_dir", "evaluate")}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def list_runs(root: Path, facts: dict, entries: list[dict]) -> None:
    """Writes sweep.json, the runs with the hashes that they have."""
    hashes = [json.loads((root / e["run"] / "run.json").read_text())["recipe_hash"] for e in entries]
    runs = [entry | {"recipe_hash": found} for entry, found in zip(entries, hashes, strict=True)]
    (root / "sweep.json").write_text(json.dumps(sealed(facts | {"runs": runs})))


def change(path: Path, **values) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
