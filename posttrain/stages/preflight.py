"""Checks of a recipe before anything is loaded: tasks, files, first rows, rewards, GPUs, start model,
lengths.

Imports neither torch nor transformers. `posttrain check` shows the result, every stage runs it first. Loggers
are in `loggers.py`. Left out: whatever needs the hub or a tokenizer; of a source only the first row is read,
of the files of a task all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.base.files import refuse_unwritable
from posttrain.base.process import why_on_cpu
from posttrain.data.readers import Broken
from posttrain.data.shapes.catalogue import SHAPES, Shape
from posttrain.data.shapes.columns import usual_names
from posttrain.data.shapes.prompts import Asked, columns_of
from posttrain.data.sources import first_row, list_files, open_rows
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError, did_you_mean
from posttrain.evaluate.tasks.catalogue import check_task, metrics, read_task
from posttrain.generation.cache_limits import across_switch
from posttrain.generation.vllm_settings import refuse_cpu, wrong_adapters
from posttrain.recipe import DpoRecipe, Recipe, RlvrRecipe, RolloutRecipe, TrainRecipe
from posttrain.recipe.attention import lacking
from posttrain.recipe.build import Problems
from posttrain.recipe.optimizers import wanting
from posttrain.recipe.plan import new_tokens, rows_alone, shape_of
from posttrain.recipe.schema import Source, Task
from posttrain.recipe.stage_rules import NO_BALANCING
from posttrain.rewards.compose import Composite
from posttrain.rewards.registry import LacksColumn
from posttrain.rundir import adapters
from posttrain.rundir.adapter_fit import refuse_unfit
from posttrain.rundir.checkpoints import resolve
from posttrain.rundir.start_config import start_config
from posttrain.stages.loggers import loggers

MODELS = (
    ("model", "init"),
    ("preference", "reference_model"),
    ("policy", "reference"),
    ("pairing", "teacher"),
)
"""Section and key of every value that names a model."""
GOLD = ("answer", "ground_truth", "gold", "final_answer", "target", "solution", "label", "reference")
"""Names under which data sets have the answer that rewards read, or a part of a column."""
LOOKED = 100
"""Rows among which one must fit, with `on_error: skip`, and one that is kept is looked for."""


def preflight(
    recipe: Recipe,
    coming: Collection[str] = (),
    where: str = "",
    on_cpu: Callable[[], str | None] = why_on_cpu,
) -> dict[str, list[dict[str, Any]]]:
    """Files by source name ([{path, bytes}], empty for hub ids and generators). Raises `RequestError`.

    `coming`: places of runs that an earlier stage will make, which need not exist yet. `where` opens every
    sentence of the error: the recipe's file, or the stage of a pipeline. `on_cpu`: why the run would train on
    the CPU, None where it would not; a stage has asked torch.
    """
    problems = Problems()
    files: dict[str, list[dict[str, Any]]] = {}
    shape = SHAPES[shape_of(recipe)]
    for at, source in sources_of(recipe):
        if is_coming(source, coming):
            files[source.name] = []
            continue
        try:
            files[source.name] = list_files(source)
            if files[source.name] or source.generator:
                _first_row(source, shape)
        except RequestError as error:
            problems.add(at, str(error))
    if isinstance(recipe, RolloutRecipe):
        _rewards(recipe, files, problems)
    _machine(recipe, on_cpu, problems)
    if sentence := lacking(recipe.model.attention):
        problems.add("model.attention", sentence)
    if isinstance(recipe, TrainRecipe):
        sound: dict[str, Task] = {}
        for i, task in enumerate(recipe.evaluate.tasks):
            at = f"evaluate.tasks[{i}]"
            wrong = check_task(task, at)
            if not wrong:
                sound[task.name] = task
            for path, message in wrong or read_task(task, at):
                problems.add(path, message)
        _metrics(recipe, sound, problems)
        loggers(recipe.train.report_to, problems)
        for sentence in wanting(recipe.train.optim, on_cpu):
            problems.add("train.optim", sentence)
    _config(recipe, _folders(recipe, coming, problems)["model"], problems)
    if problems:
        prefix = f"{where}: " if where else ""
        raise RequestError("\n".join(f"{prefix}{p}" for p in problems.found))
    return files


def sources_of(recipe: Recipe) -> list[tuple[str, Source]]:
    """Every source a recipe reads, the held-out one included, with its place in the recipe."""
    found = [(f"data.sources[{i}]", s) for i, s in enumerate(recipe.data.sources)]
    heldout = recipe.evaluate.heldout if isinstance(recipe, TrainRecipe) else None
    if heldout is not None and heldout.source is not None:
        found.append(("evaluate.heldout.source", heldout.source))
    return found


def is_coming(source: Source, coming: Collection[str]) -> bool:
    """Whether a source is a file that an earlier stage will make."""
    return source.path is not None and any(source.path.startswith(f"{at}/") for at in coming)


def _machine(recipe: Recipe, on_cpu: Callable[[], str | None], problems: Problems) -> None:
    """Whether the run can be written, and has the GPU that vLLM or quantised weights need."""
    if isinstance(recipe, RlvrRecipe):
        try:
            refuse_cpu(recipe.rollout.backend, on_cpu())
        except RequestError as error:
            problems.add("rollout.backend", str(error))
        for sentence in wrong_adapters(recipe.model, recipe.rollout.backend):
            problems.add("rollout.backend", sentence)
    if recipe.model.quantization is not None and (why := on_cpu()):
        problems.add("model.quantization", f"model.quantization needs a GPU ({why})")
    try:
        refuse_unwritable(Path(recipe.output_dir))
    except RequestError as error:
        problems.add("output_dir", f"output_dir: {error}")


def _folders(recipe: Recipe, coming: Collection[str], problems: Problems) -> dict[str, Path | None]:
    """Section of `MODELS` -> the folder of its model, see `_start`."""
    return {
        section: _start(
            getattr(holder, key),
            f"{section}.{key}",
            coming,
            problems,
            quantized=recipe.model.quantization is not None and section != "pairing",
        )
        for section, key in MODELS
        if (holder := getattr(recipe, section, None)) is not None
    }


def _config(recipe: Recipe, folder: Path | None, problems: Problems) -> None:
    """What the start model's config does not allow."""
    try:
        config = start_config(recipe.model, folder)
    except RequestError as error:
        problems.add("model", str(error))
        return
    shape = recipe.model.from_config
    given = shape and shape.options.get("max_position_embeddings")
    if given is not None and not isinstance(given, int):
        at = "model.from_config.options.max_position_embeddings"
        problems.add("model", f"{at} = {given!r} must be a whole number")
        return
    balanced = config.get("output_router_logits") and config.get("router_aux_loss_coef", 1)
    if isinstance(recipe, DpoRecipe) and balanced:
        problems.add("model.options", NO_BALANCING)
    _lengths(recipe, config, problems)


def _lengths(recipe: Recipe, config: dict[str, Any], problems: Problems) -> None:
    new = new_tokens(recipe)
    longest = recipe.data.max_length + new
    besides = f" and rollout.max_new_tokens = {new} are" if new else " is"
    says = f"data.max_length = {recipe.data.max_length}{besides} above the"
    limit = config.get("max_position_embeddings")
    if isinstance(limit, int) and longest > limit:
        problems.add("data.max_length", f"{says} {limit} positions of the model")
    elif not rows_alone(recipe) and (why := across_switch(config, recipe.data.max_length, new)):
        problems.add("data.max_length", why)


def _rewards(recipe: Recipe, files: dict[str, list[dict[str, Any]]], problems: Problems) -> None:
    """Names, options, what this machine lacks, and the columns of each source's first row."""
    try:
        rewards = Composite(recipe.rewards, recipe.success)
        wrong = rewards.missing()
    except RequestError as error:
        rewards, wrong = None, str(error).splitlines()
    for sentence in wrong:
        problems.add(sentence.partition(":")[0], sentence)
    if rewards is None:
        return
    for i, source in enumerate(recipe.data.sources):
        if not files.get(source.name) and not source.generator:
            continue
        where, row = _first_kept(source, SHAPES[shape_of(recipe)])
        try:
            rewards.check_rows([Asked(where, "", columns_of(row, source)).example()])
        except LacksColumn as error:
            advice = _where_the_answer_is(row, source) if error.column == "answer" else ""
            problems.add(f"data.sources[{i}]", f"{error}{advice}")
        except RequestError as error:
            problems.add(f"data.sources[{i}]", str(error))


def _first_kept(source: Source, shape: Shape) -> tuple[str, dict[str, Any]]:
    """The first of the first rows that is not dropped, else the first of all."""
    rows = open_rows(source)
    for where, row in islice(rows, LOOKED):
        with contextlib.suppress(RowError, RequestError):  # `_first_row` reports what is refused
            shape.read(row, source, where)
            return where, row
    return first_row(rows)


def _where_the_answer_is(row: dict[str, Any], source: Source) -> str:
    """What to do where `row` has no column `answer`, as the end of a sentence."""
    asked = {*usual_names("prompt", "messages"), source.columns.prompt, source.columns.messages}
    values = {name: value for name, value in row.items() if name not in asked}
    for name, value in values.items():
        if isinstance(value, dict) and (inner := next((key for key in GOLD if key in value), None)):
            return f". Rewards read columns only: write {inner!r} of {name!r} as a column 'answer'"
    single = [name for name, value in values.items() if isinstance(value, str | int | float)]
    usual = [name for name in GOLD if name in single]
    own = usual[0] if usual else single[0] if len(single) == 1 else "..."
    return f". Set columns: {{answer: {own}}} on the source" if single else ""


def _first_row(source: Source, shape: Shape) -> None:
    """Raises `RequestError` for an empty source or wrongly named columns, which the first row shows; with
    `on_error: skip`, where none of the first rows fits."""
    rows = open_rows(source)
    looked = [first_row(rows)]
    if source.on_error == "skip":
        looked = [row for row in islice(rows, LOOKED) if not isinstance(row[1], Broken)] or looked
    refused = None
    for where, row in looked:
        try:
            with contextlib.suppress(RowError):  # a dropped row; data.max_drop_share limits their number
                shape.read(row, source, where)
            return
        except RequestError as error:
            refused = refused or error
    raise refused


def _metrics(recipe: TrainRecipe, tasks: dict[str, Task], problems: Problems) -> None:
    """Whether `tasks`, whose settings are right, measure what `keep_best` and the gates name."""
    named = {f"evaluate.gates[{i}]": gate for i, gate in enumerate(recipe.evaluate.gates)}
    if recipe.checkpoints.keep_best is not None:
        named["checkpoints.keep_best"] = recipe.checkpoints.keep_best
    for place, by in named.items():
        if by.task in tasks and by.metric not in metrics(tasks[by.task]):
            near = did_you_mean(by.metric, metrics(tasks[by.task]))
            at = f"{place}.metric"
            problems.add(at, f"{at} = {by.metric!r} is not a metric of task {by.task}{near}")


def _start(
    init: str | None, at: str, coming: Collection[str], problems: Problems, quantized: bool
) -> Path | None:
    """The folder of trained weights where there is one on this disk already; of an adapter, its full model.

    `quantized`: whether the weights are quantised when they are loaded.
    """
    if init is None or init.partition("@")[0] in coming:
        return None
    try:
        folder = Path(resolve(init)[0])
    except RequestError as error:
        problems.add(at, f"{at}: {error}")
        return None
    if not folder.exists():
        return None  # a hub id
    if not any((folder / name).is_file() for name in ("config.json", adapters.CONFIG)):
        problems.add(at, f"{at}: {folder} contains no model (no config.json)")
        return folder
    try:
        refuse_unfit(folder, quantized)
        return Path(adapters.chain(folder)[-1])
    except RequestError as error:
        problems.add(at, f"{at}: {error}")
        return None
