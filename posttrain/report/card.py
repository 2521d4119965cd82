"""The model card of a checkpoint: a README.md with the metadata that the hub reads, from what the run
measured.

A number that was not measured is given as "not measured". Left out: a licence, which only the person who
publishes the model can state, and any upload.
"""

from __future__ import annotations

from typing import Any

import yaml

from posttrain.base.printable import printable
from posttrain.errors import RequestError, did_you_mean
from posttrain.report import markdown, tables
from posttrain.report.alerts import holes
from posttrain.report.facts import component_rows, facts
from posttrain.report.measured import others, some
from posttrain.report.score_tables import MOST_TABLES, metric_text, shown_metrics, temperature_table
from posttrain.report.text import loss_name, objective
from posttrain.rundir.reading import RunData
from posttrain.types import Score

UNKNOWN = "not measured"
SCORES = ("task", "metric", "value", "95 % interval", "problems")


def model_card(run: RunData, checkpoint: str) -> str:
    """README.md for `checkpoint` (e.g. `step-000400`). Raises `RequestError` where the run has no such
    checkpoint."""
    known = [c.name for c in run.checkpoints] or [s.checkpoint for s in run.scores]
    if checkpoint not in known:
        raise RequestError(f"{run.path}: no checkpoint {checkpoint!r}{did_you_mean(checkpoint, known)}")
    parts = [
        f"---\n{_metadata(run, checkpoint)}\n---",
        f"# {markdown.safe(run.name)}",
        _opening(run, checkpoint),
        "## Intended use",
        _intended(run, checkpoint),
        "## Training data",
        _data(run),
        "## Training procedure",
        _procedure(run),
        "## Evaluation",
        _evaluation(run, checkpoint),
        "## Limits",
        _limits(run, checkpoint),
    ]
    return printable("\n\n".join(parts) + "\n")


def _scores(run: RunData, checkpoint: str) -> dict[str, dict]:
    """task -> metric -> score of this checkpoint."""
    found = {task: run.rows(task).get(checkpoint, {}) for task in run.tasks}
    return {task: metrics for task, metrics in found.items() if metrics}


def _metadata(run: RunData, checkpoint: str) -> str:
    """YAML by the classes of huggingface_hub where it is installed, else the tags alone."""
    tags = ["posttrain", run.stage or "sft"]
    base = run.section("model").get("init")
    plain: dict[str, Any] = {"library_name": "transformers", "tags": tags}
    plain |= {"pipeline_tag": "text-generation"}
    if isinstance(base, str) and _hub_id(base):
        plain["base_model"] = base
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task,
            metric_type=metric,
            metric_name=metric,
            metric_value=score.value,
        )
        for task, metrics in _scores(run, checkpoint).items()
        for metric, score in metrics.items()
        if metric in shown_metrics(list(metrics))
    ]
    if results:
        plain |= {"eval_results": results, "model_name": run.name}
    return ModelCardData(**plain).to_yaml().strip()


def _hub_id(text: str) -> bool:
    """Whether `text` is a hub id, `org/name`, and neither a path nor a run of ours."""
    parts = text.split("/")
    return (
        len(parts) == 2
        and all(p and p[0].isalnum() for p in parts)
        and parts[0] != "runs"
        and "@" not in text
    )


def _opening(run: RunData, checkpoint: str) -> str:
    model = run.section("model")
    config = model.get("from_config")
    origin = markdown.safe(model["init"]) if model.get("init") else "random weights"
    if isinstance(config, dict) and not model.get("init"):
        origin += f" ({markdown.safe(str(config.get('model_type')))})"
    aim = markdown.safe(objective(run) or loss_name(run) or "unknown")
    return (
        f"Checkpoint `{checkpoint}`, stage {markdown.safe(run.stage or 'unknown')}, started from {origin}."
        f" Objective: {aim}."
    )


def _intended(run: RunData, checkpoint: str) -> str:
    tasks = ", ".join(_scores(run, checkpoint)) or "none"
    return (
        f"Research on post-training. Measured on: {markdown.safe(tasks)}."
        f" Fitness for any other use: {UNKNOWN}.\n\n"
        "Licence: not stated here; it follows from the base model and the data."
    )


def _data(run: RunData) -> str:
    if not tables.mixture_rows(run):
        return f"Mixture: {UNKNOWN}."
    total = tables.count(run.mixture.get("examples_total"))
    overlap = tables.plain(run.mixture.get("overlap", UNKNOWN))
    return (
        f"{markdown.mixture(run)}\n\nExamples seen in total: {total}. Overlap with the evaluation tasks:"
        f" {markdown.safe(overlap)}."
    )


def _procedure(run: RunData) -> str:
    paper = dict(tables.provenance([run]))
    shown = ("Command", "Steps", "Seconds", "Hardware", "Versions", "Commit", "Recipe hash")
    known = [f"- {what}: {markdown.safe(paper[what][0] if what in paper else UNKNOWN)}" for what in shown]
    recipe = run.recipe_text.strip() or f"# {UNKNOWN}"
    fence = "`" * max(3, _longest_ticks(recipe) + 1)
    parts = ["\n".join(known), _stage(run), f"The recipe, as run:\n\n{fence}yaml\n{recipe}\n{fence}"]
    return "\n\n".join(part for part in parts if part)


def _stage(run: RunData) -> str:
    """What the complete run logged, whichever checkpoint the card is for; nothing for plain fine-tuning."""
    if not facts(run):
        return ""
    rewards = [f"{row['label']} (weight {row['weight']})" for row in component_rows(run)]
    lead = "Over the complete run, means of the first → last tenth of the logged steps:"
    lines = [f"- {what}: {markdown.safe(value)}" for what, value in facts(run).items()]
    lines += [f"- rewards: {markdown.safe(', '.join(rewards))}"] if rewards else []
    return lead + "\n\n" + "\n".join(lines)


def _longest_ticks(text: str) -> int:
    longest = current = 0
    for character in text:
        current = current + 1 if character == "`" else 0
        longest = max(longest, current)
    return longest


def _evaluation(run: RunData, checkpoint: str) -> str:
    rows = [row for task, metrics in _scores(run, checkpoint).items() for row in _score_rows(task, metrics)]
    missing = f"\n\n{markdown.bullets(lines)}" if (lines := holes(run, checkpoint)) else ""
    if not rows:
        return f"Scores of this checkpoint: {UNKNOWN}.{missing}"
    seeds = f"Intervals are over the problems of each task; spread over training seeds: {UNKNOWN}."
    return "\n\n".join([markdown.grid(SCORES, rows), seeds, *_other_scores(run, checkpoint)]) + missing


def _score_rows(task: str, metrics: dict[str, Score]) -> list[list[str]]:
    rows = []
    for metric in shown_metrics(list(metrics)):
        s = metrics[metric]
        known = s.low is not None and s.high is not None
        interval = " to ".join(metric_text(metric, v) for v in (s.low, s.high)) if known else UNKNOWN
        rows.append([task, metric, metric_text(metric, s.value), interval, f"{s.n:,}"])
    return rows


def _other_scores(run: RunData, checkpoint: str) -> list[str]:
    """What was measured besides the run's own settings, a heading and a table each."""
    parts, left = [], []
    for task in run.tasks:
        by = temperature_table(run, task, [checkpoint])
        parts += [f"### {markdown.safe(task)}, {by.title}", markdown.scores(by)] if by else []
        ways = [(how, run.rows(task, settings)) for settings, how in others(run, task).items()]
        held = [(f"{task}, {how}", rows[checkpoint]) for how, rows in ways if checkpoint in rows]
        for name, metrics in held[:MOST_TABLES]:
            parts += [f"### {markdown.safe(name)}", markdown.grid(SCORES, _score_rows(task, metrics))]
        left += [name for name, _ in held[MOST_TABLES:]]
    if not left:
        return parts
    ways = f"{len(left):,} other way{'s' * (len(left) != 1)}"
    return [*parts, f"Measured in {ways}, too ({markdown.safe(some(left))}): see scores.jsonl of the run."]


def _limits(run: RunData, checkpoint: str) -> str:
    heldout = [r for r in run.metrics.get("heldout", []) if isinstance(r.get("loss"), float)]
    loss = f"{heldout[-1]['loss']:.4g} at step {heldout[-1]['step']:,}" if heldout else UNKNOWN
    cut = [
        f"{task} {metrics['truncated'].value:.1%}"
        for task, metrics in _scores(run, checkpoint).items()
        if "truncated" in metrics
    ]
    limits = {
        "Held-out loss": loss,
        "Completions cut off at the length limit": ", ".join(cut) or UNKNOWN,
        "Safety, bias, other languages and tasks": UNKNOWN,
        "State of the run": run.status,
    }
    return "\n".join(f"- {what}: {markdown.safe(value)}" for what, value in limits.items())
