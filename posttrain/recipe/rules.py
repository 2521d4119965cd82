"""Combinations of recipe keys that cannot work, found before anything is loaded. Imports no torch.

A rule is a function that adds problems; `RULES` and `TRAIN_RULES` list them. Here: the rules of the sections
that most stages have, and of pipelines. `train` and `loss` have theirs in train_rules.py, the sections of
single stages in stage_rules.py, `model.attention` in attention.py. Left out: names of tasks and rewards,
which are checked beside their registries; missing files and model sizes (stages/preflight.py).
"""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import RequestError, did_you_mean
from posttrain.recipe.attention import attention
from posttrain.recipe.bounds import folder_name, names, numbers
from posttrain.recipe.build import Problems
from posttrain.recipe.library_fields import refused, require_kinds
from posttrain.recipe.library_source import lora_fields, model_fields
from posttrain.recipe.optimizers import optimizer
from posttrain.recipe.recipes import Pipeline, Recipe, TrainRecipe
from posttrain.recipe.schedule_rules import schedule
from posttrain.recipe.schema import FromConfig, Lora, Model
from posttrain.recipe.sections import LOWER_IS_BETTER
from posttrain.recipe.stage_rules import keep, pairing, policy, preference, rewards, rollout
from posttrain.recipe.train_rules import loss, noise, train

TOKENIZERS = ("builtin:digits", "builtin:bytes")
LORA_INITS = (True, False, "gaussian", "pissa", "olora", "orthogonal")


def check_recipe(recipe: Recipe, problems: Problems) -> None:
    """Adds every impossible combination in `recipe` to `problems`."""
    for rule in (*RULES, *(TRAIN_RULES if isinstance(recipe, TrainRecipe) else ()), numbers):
        rule(recipe, problems)


def name(recipe: Recipe, problems: Problems) -> None:
    folder_name("name", recipe.name, problems)


def model(recipe: Recipe, problems: Problems) -> None:
    m = recipe.model
    if (m.init is None) == (m.from_config is None):
        problems.add(
            "model", "model needs exactly one of init (a trained model) and from_config (random weights)"
        )
    if m.from_config is not None:
        _from_config(m, m.from_config, problems)
    if m.tokenizer and m.tokenizer.startswith("builtin:") and m.tokenizer not in TOKENIZERS:
        at = "model.tokenizer"
        problems.add(at, f"{at} = {m.tokenizer!r}{did_you_mean(m.tokenizer, TOKENIZERS)}")
    if m.dtype == "float16" and m.lora is None:
        problems.add(
            "model.dtype",
            "model.dtype = float16 needs model.lora: full updates of float16 weights round to nothing; use "
            "float32 or bfloat16, with train.fp16 for mixed precision",
        )
    elif m.dtype == "float16" and m.lora.modules_to_save:
        at = "model.lora.modules_to_save"
        problems.add(
            at,
            f"{at} trains whole modules, which cannot be done in model.dtype = float16: the updates round to "
            "nothing; use float32 or bfloat16",
        )
    if m.quantization is not None and m.lora is None:
        problems.add(
            "model.quantization", "model.quantization freezes the weights; it needs model.lora to train"
        )
    if m.lora is not None:
        problems.require_above("model.lora.r", m.lora.r)
        _lora_options(m.lora, problems)
        _adapted_head(m.lora, problems)


def _from_config(m: Model, config: FromConfig, problems: Problems) -> None:
    """transformers' config classes accept any keyword silently; a misspelt one must not pass."""
    if m.lora is not None:
        problems.add(
            "model.lora", "model.lora adapts trained weights; it cannot be combined with model.from_config"
        )
    if m.quantization is not None:
        at = "model.quantization"
        problems.add(at, f"{at} needs trained weights; set model.init instead of model.from_config")
    if m.tokenizer is None:
        at = "model.tokenizer"
        problems.add(at, f"{at} is needed with model.from_config, e.g. builtin:bytes")
    try:
        known = model_fields(config.model_type)
    except RequestError as error:
        problems.add("model.from_config.model_type", str(error))
        return
    for key in config.options:
        at = f"model.from_config.options.{key}"
        if key == "vocab_size":
            problems.add(at, "vocab_size is taken from the tokenizer; remove it")
        elif key not in known:
            problems.add(
                at, f"the config of {config.model_type} has no field {key!r}{did_you_mean(key, known)}"
            )


def _lora_options(lora: Lora, problems: Problems) -> None:
    """Fields of peft's LoraConfig, by name, that are open: with them the saved adapter, loaded or merged, was
    seen to be the model that was trained."""
    problems.require_above("model.lora.alpha", lora.alpha)
    if not lora.target_modules and not lora.options.get("target_parameters"):
        at = "model.lora.target_modules"
        problems.add(at, f"{at} is empty: nothing would be trained; use all-linear")
    if not 0 <= lora.dropout < 1:
        at = "model.lora.dropout"
        problems.add(at, f"{at} = {lora.dropout} must be in [0, 1)")
    require_kinds("LoraConfig", lora.options, "model.lora.options", problems)
    known, elsewhere = lora_fields() if lora.options else (), refused("LoraConfig")
    for key in lora.options:
        at = f"model.lora.options.{key}"
        if key not in known:
            problems.add(at, f"{at}: peft's LoraConfig has no field {key!r}{did_you_mean(key, known)}")
        elif key in elsewhere:
            problems.add(at, f"{at} is not allowed: {elsewhere[key]}")
    start = lora.options.get("init_lora_weights", True)
    if isinstance(start, str) and start not in LORA_INITS:
        at = "model.lora.options.init_lora_weights"
        problems.add(
            at,
            f"{at} = {start!r} is not supported; choose one of {', '.join(map(str, LORA_INITS))} (others "
            "need data, or are drawn anew whenever the saved adapter is loaded)",
        )


def _adapted_head(lora: Lora, problems: Problems) -> None:
    """The loss is computed in the head, from its weight and one plain pair of low-rank factors."""
    heads = {"lm_head", "embed_out", "output"} & {t.rsplit(".", 1)[-1] for t in lora.target_modules}
    for key in ("use_dora", "fan_in_fan_out"):
        if heads and lora.options.get(key):
            at = f"model.lora.options.{key}"
            problems.add(
                at,
                f"{at} is not supported for an adapter on the output head ({', '.join(sorted(heads))}): "
                "remove one of the two, or move the head to model.lora.modules_to_save",
            )
    both = heads & {t.rsplit(".", 1)[-1] for t in lora.modules_to_save}
    if both:
        problems.add(
            "model.lora.modules_to_save",
            f"{', '.join(sorted(both))} is listed in both model.lora.target_modules and "
            "model.lora.modules_to_save; remove it from one of them",
        )


def data(recipe: Recipe, problems: Problems) -> None:
    d = recipe.data
    if not d.sources:
        problems.add("data.sources", "data.sources is empty; add at least one source")
    names = [s.name for s in d.sources]
    for i, source in enumerate(d.sources):
        at = f"data.sources[{i}]"
        if names.index(source.name) != i:
            problems.add(
                f"{at}.name", f"{at}.name = {source.name!r} is listed twice; each source needs its own name"
            )
        if (source.path is None) == (source.generator is None):
            problems.add(at, f"{at} needs exactly one of path and generator")
        problems.require_at_least(f"{at}.weight", source.weight)
        problems.require_above(f"{at}.max_examples", source.max_examples)
        problems.require_above(f"{at}.max_repeats", source.max_repeats)
    given = [s.weight for s in d.sources if s.weight is not None]
    if given and len(given) < len(d.sources):
        problems.add(
            "data.sources", "some of data.sources have a weight and some do not; set it on all or on none"
        )
    elif given and sum(given) == 0:
        problems.add(
            "data.sources", "the weights of data.sources sum to zero, which leaves nothing to train on"
        )
    problems.require_at_least("data.max_length", d.max_length, 2)
    problems.require_above("data.max_characters", d.max_characters)
    problems.require_above("data.temperature", d.temperature)
    problems.require_above("data.prepare_timeout", d.prepare_timeout)
    problems.require_above("data.num_proc", d.num_proc)
    problems.require_share("data.max_drop_share", d.max_drop_share)


def evaluate(recipe: TrainRecipe, problems: Problems) -> None:
    tasks = [t.name for t in recipe.evaluate.tasks]
    for i, task in enumerate(tasks):
        if tasks.index(task) != i:
            at = f"evaluate.tasks[{i}].name"
            problems.add(at, f"{at} = {task!r} is listed twice; scores are stored under the name of the task")
    heldout = recipe.evaluate.heldout
    if heldout is not None:
        if (heldout.share is None) == (heldout.source is None):
            problems.add("evaluate.heldout", "evaluate.heldout needs exactly one of share and source")
        if heldout.share is not None and not 0 < heldout.share < 1:
            at = "evaluate.heldout.share"
            problems.add(at, f"{at} = {heldout.share} must be above 0 and below 1")
        problems.require_above("evaluate.heldout.every_steps", heldout.every_steps)
        problems.require_above("evaluate.heldout.max_examples", heldout.max_examples)


def gates(recipe: TrainRecipe, problems: Problems) -> None:
    tasks = [t.name for t in recipe.evaluate.tasks]
    for i, gate in enumerate(recipe.evaluate.gates):
        at = f"evaluate.gates[{i}]"
        _one_of_tasks(f"{at}.task", gate.task, tasks, problems)
        problems.require_at_least(f"{at}.max_drop", gate.max_drop)
        if gate.greater_is_better and gate.metric in LOWER_IS_BETTER:
            problems.add(
                f"{at}.greater_is_better",
                f"{at}.metric = {gate.metric} is better when it is lower; set greater_is_better: false",
            )
        if gate.against == "start" and not recipe.evaluate.at_start:
            problems.add(
                f"{at}.against",
                f"{at}.against = start needs the score of the start model; set evaluate.at_start: true or "
                "against: best",
            )


def checkpoints(recipe: TrainRecipe, problems: Problems) -> None:
    c = recipe.checkpoints
    problems.require_above("checkpoints.save_steps", c.save_steps)
    problems.require_above("checkpoints.keep_last", c.keep_last)
    if c.keep_best is not None:
        tasks = [t.name for t in recipe.evaluate.tasks]
        _one_of_tasks("checkpoints.keep_best.task", c.keep_best.task, tasks, problems)


def _one_of_tasks(at: str, task: str, tasks: list[str], problems: Problems) -> None:
    if task not in tasks:
        problems.add(at, f"{at} = {task!r} is not one of evaluate.tasks{did_you_mean(task, tasks)}")


def guard(recipe: TrainRecipe, problems: Problems) -> None:
    problems.require_above("guard.spike_factor", recipe.guard.spike_factor, 1)
    problems.require_above("guard.window", recipe.guard.window)


RULES = (name, names, model, attention, data, rewards, rollout, pairing, keep)
TRAIN_RULES = (
    loss,
    train,
    noise,
    schedule,
    optimizer,
    evaluate,
    gates,
    checkpoints,
    guard,
    preference,
    policy,
)
"""Rules of the stages that train."""


def check_pipeline(pipeline: Pipeline, path: Path, problems: Problems) -> None:
    """Adds what is wrong with a pipeline: unknown or circular dependencies, missing recipe files."""
    names = [s.name for s in pipeline.stages]
    folder_name("pipeline", pipeline.pipeline, problems)
    if not names:
        problems.add("stages", "stages is empty; add at least one stage")
    for i, stage in enumerate(pipeline.stages):
        at = f"stages[{i}]"
        folder_name(f"{at}.name", stage.name, problems)
        if names.index(stage.name) != i:
            problems.add(f"{at}.name", f"{at}.name = {stage.name!r} is listed twice")
        for other in stage.after:
            if other not in names[:i]:
                near = did_you_mean(other, names[:i])
                problems.add(f"{at}.after", f"{at}.after = {other!r} is not an earlier stage{near}")
        if not (path.parent / stage.recipe).is_file():
            near = did_you_mean(stage.recipe, [p.name for p in path.parent.glob("*.yaml")])
            problems.add(f"{at}.recipe", f"{path.parent / stage.recipe}: no such file{near}")
    problems.require_above("parallel", pipeline.parallel)
    numbers(pipeline, problems)
