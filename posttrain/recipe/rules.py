"""Combinations that cannot work, found before anything is loaded. Imports no torch.

Each rule is a small function that adds problems; `RULES` lists them. Names of tasks and rewards are checked by
the catalogues beside their registries; missing files and model sizes by `posttrain/stages/preflight.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.build import Problems, positive, share
from posttrain.recipe.recipes import Pipeline, Recipe, SampleRecipe, SftRecipe
from posttrain.recipe.schema import FromConfig, Lora
from posttrain.recipe.stage_rules import gates, policy, preference, rewards, rollout, sampling
from posttrain.recipe.train_rules import train
from posttrain.recipe.trl_fields import model_fields


def check_recipe(recipe: Recipe, problems: Problems) -> None:
    """Adds every impossible combination in `recipe` to `problems`."""
    for rule in (*RULES, *(() if isinstance(recipe, SampleRecipe) else TRAIN_RULES)):
        rule(recipe, problems)


def name(recipe: Recipe, problems: Problems) -> None:
    bad = not recipe.name or recipe.name.startswith(".") or any(c in recipe.name for c in "@:\\ ")
    if bad or "/" in recipe.name or recipe.name.endswith(("/", "..")):
        problems.add("name", f"name = {recipe.name!r} must be usable as a folder name")


def model(recipe: Recipe, problems: Problems) -> None:
    m = recipe.model
    if (m.init is None) == (m.from_config is None):
        problems.add(
            "model", "model needs exactly one of init (a trained model) and from_config (from scratch)"
        )
    if m.from_config is not None:
        options(m.from_config, problems)
    if m.lora is not None and m.from_config is not None:
        problems.add("model.lora", "model.lora adapts trained weights; with from_config there are none")
    if m.from_config is not None and m.tokenizer is None:
        problems.add("model.tokenizer", "model.tokenizer is needed with from_config, e.g. builtin:bytes")
    if m.tokenizer and m.tokenizer.startswith("builtin:"):
        known = ("builtin:digits", "builtin:bytes")
        if m.tokenizer not in known:
            problems.add(
                "model.tokenizer", f"model.tokenizer = {m.tokenizer!r}{did_you_mean(m.tokenizer, known)}"
            )
    if m.dtype == "float16" and m.lora is None:
        problems.add(
            "model.dtype",
            "model.dtype = float16 cannot be trained whole: its updates round to nothing; use float32 or bfloat16, with train.fp16 for mixed precision",
        )
    if m.quantization is not None and m.lora is None:
        problems.add(
            "model.quantization", "model.quantization freezes the weights; it needs model.lora to train"
        )
    if m.quantization is not None and m.from_config is not None:
        problems.add("model.quantization", "model.quantization needs trained weights (model.init)")
    if m.lora is not None:
        positive(problems, "model.lora.r", m.lora.r)
        head_rules(m.lora, problems)


def head_rules(lora: Lora, problems: Problems) -> None:
    """The loss is computed in the head, from its weight and one plain pair of low-rank factors."""
    heads = {"lm_head", "embed_out", "output"} & {t.rsplit(".", 1)[-1] for t in lora.target_modules}
    for key in ("use_dora", "lora_bias", "fan_in_fan_out"):
        if heads and lora.options.get(key):
            problems.add(
                f"model.lora.options.{key}",
                f"model.lora.options.{key} is not supported for an adapter on the output head "
                f"({', '.join(sorted(heads))}): leave one of the two out, or list the head in "
                "model.lora.modules_to_save",
            )
    both = heads & {t.rsplit(".", 1)[-1] for t in lora.modules_to_save}
    if both:
        problems.add(
            "model.lora.modules_to_save",
            f"{', '.join(sorted(both))} stands in model.lora.target_modules and in modules_to_save; one of the two",
        )


def options(config: FromConfig, problems: Problems) -> None:
    """transformers' config classes accept any keyword silently; a misspelt one must not pass."""
    try:
        known = model_fields(config.model_type)
    except RequestError as error:
        problems.add("model.from_config.model_type", str(error))
        return
    for key in config.options:
        if key == "vocab_size":
            problems.add(
                "model.from_config.options.vocab_size", "vocab_size follows from the tokenizer; leave it out"
            )
        elif key not in known:
            problems.add(
                f"model.from_config.options.{key}",
                f"{config.model_type} has no field {key!r}{did_you_mean(key, known)}",
            )


def data(recipe: Recipe, problems: Problems) -> None:
    d = recipe.data
    if not d.sources:
        problems.add("data.sources", "data.sources is empty; name at least one source")
    names = [s.name for s in d.sources]
    for i, source in enumerate(d.sources):
        at = f"data.sources[{i}]"
        if names.index(source.name) != i:
            problems.add(f"{at}.name", f"{at}.name = {source.name!r} stands twice; names tell sources apart")
        if (source.path is None) == (source.generator is None):
            problems.add(at, f"{at} needs exactly one of path and generator")
        if source.weight is not None and not (math.isfinite(source.weight) and source.weight >= 0):
            problems.add(f"{at}.weight", f"{at}.weight = {source.weight} must be a number of at least 0")
        positive(problems, f"{at}.max_examples", source.max_examples)
        positive(problems, f"{at}.max_repeats", source.max_repeats)
    given = [s.weight for s in d.sources if s.weight is not None]
    if given and len(given) < len(d.sources):
        problems.add("data.sources", "some sources have a weight and some have none; set all or none")
    elif given and sum(given) == 0:
        problems.add("data.sources", "the weights of data.sources sum to zero: nothing would be trained on")
    positive(problems, "data.max_length", d.max_length, 2, strict=False)
    positive(problems, "data.temperature", d.temperature)
    positive(problems, "data.prepare_timeout", d.prepare_timeout)
    share(problems, "data.max_drop_share", d.max_drop_share)


def loss(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, SftRecipe):
        return
    value = recipe.loss
    if value.name == "confidence_limited":
        positive(problems, "loss.n", value.n, 1, strict=False)
    elif value.n != 1.0:
        problems.add("loss.n", f"loss.n = {value.n:g} is for confidence_limited; loss.name is {value.name}")
    needs = value.name in ("power", "focal", "maxrl")
    if needs and value.exponent is None:
        problems.add("loss.exponent", f"loss.name = {value.name} needs loss.exponent")
    if not needs and value.exponent is not None:
        problems.add("loss.exponent", f"loss.exponent means nothing for loss.name = {value.name}")
    if needs and value.exponent is not None:
        positive(problems, "loss.exponent", value.exponent, 0, strict=value.name != "focal")
        if value.name == "maxrl" and not float(value.exponent).is_integer():
            problems.add("loss.exponent", "loss.exponent of maxrl is T, a whole number of at least 1")
    if value.segment == "answer" and not value.answer_marker:
        problems.add("loss.answer_marker", "loss.segment = answer needs loss.answer_marker, e.g. '#### '")
    if value.segment != "answer" and value.answer_marker:
        problems.add(
            "loss.answer_marker", f"loss.answer_marker is read only with segment: answer, not {value.segment}"
        )
    if value.segment == "step" and not value.step_delimiter:
        problems.add(
            "loss.step_delimiter", "loss.segment = step needs a loss.step_delimiter that is not empty"
        )
    if value.p == "external" and value.value == "exact":
        problems.add(
            "loss.value",
            "loss.p = external allows value: surrogate only: an exact loss has no value for a p "
            "that is not the model's own",
        )
    share(problems, "loss.p_below", value.p_below)
    positive(problems, "loss.weight_above", value.weight_above, 0, strict=False)
    positive(problems, "loss.z_loss", value.z_loss, 0, strict=False)
    positive(problems, "loss.skip_below", value.skip_below, 0, strict=False)
    positive(problems, "loss.chunk_rows", value.chunk_rows)
    if value.z_loss and value.skip_below is not None:
        problems.add(
            "loss.skip_below",
            "loss.skip_below would leave out the z-loss of the tokens it skips; use it or loss.z_loss",
        )
    gates = (value.p_below, value.weight_above) != (None, None)
    if value.skip_below is not None and value.name == "cross_entropy" and not gates:
        problems.add(
            "loss.skip_below",
            "loss.skip_below does nothing for cross_entropy without gates: its weights are all 1",
        )
    if value.skip_below is not None and value.skip_below >= 1 and value.name != "focal":
        problems.add(
            "loss.skip_below",
            f"loss.skip_below = {value.skip_below:g} would skip every token: no weight is above 1",
        )


def evaluate(recipe: Recipe, problems: Problems) -> None:
    tasks = [t.name for t in recipe.evaluate.tasks]
    for i, task in enumerate(tasks):
        if tasks.index(task) != i:
            problems.add(
                f"evaluate.tasks[{i}].name",
                f"evaluate.tasks[{i}].name = {task!r} stands twice; scores are kept by name",
            )
    heldout = recipe.evaluate.heldout
    if heldout is not None:
        if (heldout.share is None) == (heldout.source is None):
            problems.add("evaluate.heldout", "evaluate.heldout needs exactly one of share and source")
        if heldout.share is not None and not 0 < heldout.share < 1:
            problems.add(
                "evaluate.heldout.share", f"evaluate.heldout.share = {heldout.share} must lie between 0 and 1"
            )
        positive(problems, "evaluate.heldout.every_steps", heldout.every_steps)
        positive(problems, "evaluate.heldout.max_examples", heldout.max_examples)


def checkpoints(recipe: Recipe, problems: Problems) -> None:
    c = recipe.checkpoints
    positive(problems, "checkpoints.save_steps", c.save_steps)
    positive(problems, "checkpoints.keep_last", c.keep_last)
    if c.keep_best is not None:
        tasks = [t.name for t in recipe.evaluate.tasks]
        if c.keep_best.task not in tasks:
            problems.add(
                "checkpoints.keep_best.task",
                f"checkpoints.keep_best.task = {c.keep_best.task!r} is no task of evaluate.tasks"
                f"{did_you_mean(c.keep_best.task, tasks)}",
            )


def guard(recipe: Recipe, problems: Problems) -> None:
    positive(problems, "guard.spike_factor", recipe.guard.spike_factor, 1)
    positive(problems, "guard.window", recipe.guard.window)


RULES = (name, model, data, rewards, rollout, sampling)
TRAIN_RULES = (loss, train, evaluate, gates, checkpoints, guard, preference, policy)
"""Rules of the stages that train."""


def check_pipeline(pipeline: Pipeline, path: Path, problems: Problems) -> None:
    """Adds what is wrong with a pipeline: unknown or circular dependencies, missing recipe files."""
    names = [s.name for s in pipeline.stages]
    if not names:
        problems.add("stages", "stages is empty")
    for i, stage in enumerate(pipeline.stages):
        at = f"stages[{i}]"
        if names.index(stage.name) != i:
            problems.add(f"{at}.name", f"{at}.name = {stage.name!r} stands twice")
        for other in stage.after:
            if other not in names[:i]:
                problems.add(
                    f"{at}.after",
                    f"{at}.after names {other!r}, which is no earlier stage{did_you_mean(other, names[:i])}",
                )
        if not (path.parent / stage.recipe).is_file():
            near = [p.name for p in path.parent.glob("*.yaml")]
            problems.add(
                f"{at}.recipe",
                f"{path.parent / stage.recipe}: no such file{did_you_mean(stage.recipe, near)}",
            )
    positive(problems, "parallel", pipeline.parallel)
