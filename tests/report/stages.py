"""Runs of the later stages, written by hand: a pipeline of SFT, pairs, DPO and two RLVR stages.

Rewards of RLVR rise along a known line with known noise, so that tests can work their means out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import yaml

from tests.rundir.written import lines, probabilities, rollouts, score, source

KS = [2**i for i in range(8)]
REWARDS = [
    {"name": "math", "weight": 1.0, "label": None, "options": {}},
    {"name": "format", "weight": 0.2, "label": "tags", "options": {}},
]


def scored(path: Path, table: dict[int, tuple[float, float]], problems: int = 60) -> None:
    """An exact task `arithmetic`, answer probabilities logit-normal (mean, sd) a step."""
    scores = []
    order = np.random.default_rng(3).permutation(problems)
    for step, (mu, sigma) in table.items():
        name, p = f"step-{step:06d}", probabilities(mu, sigma, problems)[order]
        for k in KS:
            g = 1 - (1 - p) ** k
            half = 1.96 * float(g.std(ddof=1)) / math.sqrt(problems)
            scores.append(score(name, "arithmetic", f"pass@{k}", float(g.mean()), problems, half))
        rows = [
            {"id": f"a{i}", "prompt": f"{i}*7=", "answer": str(7 * i), "logp": math.log(p[i])}
            for i in range(problems)
        ]
        lines(path / "samples" / name / "arithmetic.jsonl", rows)
        folder = path / "checkpoints" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "COMPLETE").touch()
    lines(path / "scores.jsonl", scores)


def papers(path: Path, stage: str, recipe: dict, parent: tuple[Path, str] | None = None, **run) -> None:
    """run.json, recipe.yaml, mixture.json."""
    path.mkdir(parents=True, exist_ok=True)
    facts = {
        "name": path.name,
        "stage": stage,
        "status": "finished",
        "seconds": 61.0,
        "recipe_hash": path.name,
    }
    if parent:
        facts["parent"] = {"run": str(parent[0]), "checkpoint": parent[1]}
    (path / "run.json").write_text(json.dumps(facts | run))
    whole = {"stage": stage, "name": path.name, "data": {"sources": [{"name": "gsm8k"}]}} | recipe
    (path / "recipe.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    mixture = {"fingerprint": path.name, "sources": [source("gsm8k", 900, 898, {}, 1.0, 1.0)]}
    (path / "mixture.json").write_text(json.dumps(mixture))


def write_rlvr(
    path: Path, advantage: str, start: tuple, scores: dict, steps: int = 120, failed: float = 0.002
) -> Path:
    """Success rises from .30 by .30 over the run; reward is success + 0.2 * tags."""
    policy = {"loss": "dapo", "advantage": advantage, "k": 8, "beta": 0.01, "num_iterations": 1}
    recipe = {
        "rewards": REWARDS,
        "policy": policy,
        "rollout": {"num_generations": 16, "steps_per_generation": 2},
        "train": {"learning_rate": 5e-5},
        "evaluate": {"tasks": [{"name": "arithmetic"}]},
    }
    papers(path, "rlvr", recipe, start, steps=steps)
    rng, rows = np.random.default_rng(len(advantage)), []
    for step in range(1, steps + 1):
        t = (step - 1) / max(steps - 1, 1)
        noise = 0.04 * rng.standard_normal()
        success, tags = (0.3 + 0.3 * t + noise, min(1.0, 0.5 + (0.7 if advantage == "mean_std" else 0.4) * t))
        row = {
            "step": step,
            "split": "train",
            "loss": 0.01 * noise,
            "grad_norm": 0.4,
            "success": success,
            "reward": success + 0.2 * tags,
            "reward_std": 0.4,
            "reward/math": success,
            "reward/tags": tags,
            "reward/math/ms": 0.31,
            "reward/tags/ms": 0.02,
            "reward/math/unparseable": 0.1 * (1 - t),
            "completions/mean_length": 60 + 25 * t + 40 * noise,
            "completions/max_length": 256,
            "completions/truncated": max(0.0, 0.05 * (1 - t) + 0.2 * noise),
            "groups/all_right": 0.05 + 0.3 * t,
            "groups/all_wrong": 0.4 - 0.3 * t,
            "groups/zero_variance": 0.45 - 0.1 * t,
            "groups/sampled": 16,
            "groups/unfilled": 0,
            "checks_failed": failed,
            "kl": 0.02 * t,
            "entropy": 0.9 - 0.5 * t + noise,
            "clip_ratio/low_mean": 0.001,
            "clip_ratio/high_mean": 0.004,
            "seconds/generate": 1.4,
            "seconds/score": 0.1,
        }
        for label in ("math", "tags"):
            row |= {f"reward/{label}/{k}": 0.0 for k in ("timeout", "error", "limit")}
        row["reward/math/timeout"] = failed
        row["reward/tags/unparseable"] = 0.0
        rows.append(row)
    lines(path / "metrics.jsonl", rows)
    scored(path, scores)
    for step in (1, 61, 119):
        rollouts(path, step)
    return path


def write_dpo(path: Path, start: tuple, scores: dict, fall: float = 30.0, steps: int = 50) -> Path:
    """The chosen log-ratio falls by `fall` nats in a straight line, the rejected one by twice as much."""
    recipe = {"preference": {"loss": "dpo_norm", "beta": 5.0}, "train": {"learning_rate": 5e-7}}
    papers(path, "dpo", recipe, start, steps=steps)
    rows = []
    for step in range(1, steps + 1):
        t = (step - 1) / (steps - 1)
        row = {"step": step, "split": "train", "loss": 0.69 - 0.4 * t, "pairs": 128}
        row |= {"rewards/chosen": -0.5 * t, "rewards/rejected": -2.0 * t, "rewards/margins": 1.5 * t}
        row |= {
            "rewards/accuracies": 0.5 + 0.35 * t,
            "logratio/chosen": -fall * t,
            "logratio/rejected": -2 * fall * t,
        }
        row |= {
            "logps/chosen": -90 - fall * t,
            "logps/rejected": -95 - 2 * fall * t,
            "tokens/chosen": 60,
            "tokens/rejected": 66,
        }
        rows.append(row)
        if step % 10 == 0:
            held = {"rewards/accuracies": 0.5 + 0.25 * t, "rewards/margins": 1.1 * t, "loss": 0.69 - 0.3 * t}
            rows.append({"step": step, "split": "heldout"} | held)
    lines(path / "metrics.jsonl", rows)
    scored(path, scores)
    return path


def write_pairs(path: Path, start: tuple) -> Path:
    """200 prompts, 4 completions each: 30 never right, 40 always; 120 pairs."""
    recipe = {
        "rewards": REWARDS,
        "pairing": {"strategy": "correct_incorrect"},
        "rollout": {"num_generations": 4},
    }
    papers(path, "pairs", recipe, start, chunks=9)
    found = {"prompts": 200, "completions": 800, "pairs": 120, "success_by_count": [30, 50, 45, 35, 40]}
    found["none"] = {"all_wrong": 30, "all_right": 40, "too_few": 10}
    found["mean_tokens"] = {"chosen": 31.0, "rejected": 44.2}
    (path / "pairs.json").write_text(json.dumps(found))
    rollouts(path, 0, kind="chunk")
    return path


def write_pass_rate(path: Path, start: tuple) -> Path:
    recipe = {"rewards": REWARDS, "keep": {"at_least": 2, "at_most": 5}, "rollout": {"num_generations": 8}}
    papers(path, "pass_rate", recipe, start)
    counts = [100, 40, 30, 30, 20, 20, 30, 50, 80]
    found = {"prompts": 400, "completions": 3200, "kept": 100, "success_by_count": counts}
    (path / "pass_rate.json").write_text(json.dumps(found))
    return path


def write_chain(folder: Path) -> Path:
    """sft -> pairs, pass rates; sft -> dpo -> rlvr with two advantages."""
    sft = folder / "sft"
    papers(
        sft, "sft", {"loss": {"name": "cross_entropy", "n": 1.0}, "train": {"learning_rate": 1e-3}}, steps=200
    )
    train = [
        {"step": s, "split": "train", "loss": 2.0 / (1 + s / 50), "entropy": 1.0} for s in range(10, 201, 10)
    ]
    lines(sft / "metrics.jsonl", train)
    scored(sft, {0: (-6.0, 1.0), 100: (-2.0, 1.5), 200: (-1.2, 1.8)})
    begin = (sft, "step-000200")
    write_pairs(folder / "pairs", begin)
    write_pass_rate(folder / "difficulty", begin)
    write_dpo(folder / "dpo", begin, {0: (-1.2, 1.8), 50: (-0.9, 1.9)})
    after = (folder / "dpo", "step-000050")
    plain = {0: (-0.9, 1.9), 60: (0.2, 2.6), 120: (0.5, 3.4)}
    write_rlvr(folder / "rlvr-plain", "mean_std", after, plain)
    write_rlvr(folder / "rlvr-passk", "pass_at_k", after, {0: (-0.9, 1.9), 60: (-0.4, 1.9), 120: (0.0, 1.9)})
    names = ("sft", "pairs", "difficulty", "dpo", "rlvr-plain", "rlvr-passk")
    stages = [{"name": n, "run": n, "status": "finished", "seconds": 60.0} for n in names]
    info = {"pipeline": "chain", "stages": stages, "seconds": 300.0}
    (folder / "pipeline.json").write_text(json.dumps(info))
    return folder
