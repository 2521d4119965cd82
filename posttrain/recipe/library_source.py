"""The field names of the libraries' config classes, and the names of schedules, optimizers and loggers, read
from source with `ast`.

Importing those classes takes 5-8 s, parsing the files a tenth of one; a test compares the names with the real
classes. Model configs without annotated fields are covered by the arguments of their `__init__`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from posttrain.errors import RequestError, WorkError, did_you_mean

CONFIG_FILES = {
    "sft": ("SFTConfig", "trainer/sft_config.py"),
    "dpo": ("DPOConfig", "trainer/dpo_config.py"),
    "rlvr": ("GRPOConfig", "trainer/grpo_config.py"),
}


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise WorkError(f"{name} is not installed; train.extra cannot be checked")
    return Path(spec.origin).parent


def _class(path: Path, name: str) -> ast.ClassDef:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise WorkError(f"{path}: no class {name}; this version of the library is not supported")


def _annotated(path: Path, class_name: str) -> set[str]:
    return {
        item.target.id
        for item in _class(path, class_name).body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and "InitVar" not in ast.dump(item.annotation)
        and "ClassVar" not in ast.dump(item.annotation)
    }


@functools.cache
def config_fields(stage: str) -> frozenset[str]:
    """Names of the fields of TRL's config class for `stage` (sft, dpo, rlvr)."""
    class_name, file = CONFIG_FILES[stage]
    trl = _package("trl")
    names = _annotated(_package("transformers") / "training_args.py", "TrainingArguments")
    names |= _annotated(trl / "trainer" / "base_config.py", "_BaseConfig")
    names |= _annotated(trl / file, class_name)
    return frozenset(names)


@functools.cache
def lora_fields() -> frozenset[str]:
    """Names of the fields of peft's LoraConfig."""
    peft = _package("peft")
    names = _annotated(peft / "tuners" / "lora" / "config.py", "LoraConfig")
    for name in ("PeftConfigMixin", "PeftConfig"):
        names |= _annotated(peft / "config.py", name)
    return frozenset(names)


@functools.cache
def _members(file: str, class_name: str) -> dict[str, str]:
    """Name -> value of the members of an enumeration in transformers."""
    found = _class(_package("transformers") / file, class_name)
    items = [item for item in found.body if isinstance(item, ast.Assign)]
    return {item.targets[0].id: ast.literal_eval(item.value) for item in items}


def enum_values(file: str, class_name: str) -> frozenset[str]:
    """The values of an enumeration of names in transformers, e.g. its schedules."""
    return frozenset(_members(file, class_name).values())


@functools.cache
def integration_names() -> frozenset[str]:
    """Names of the loggers that transformers has (`report_to`)."""
    path = _package("transformers") / "integrations" / "integration_utils.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "INTEGRATION_TO_CALLBACK":
            return frozenset(ast.literal_eval(key) for key in node.value.keys)
    raise WorkError(f"{path}: no INTEGRATION_TO_CALLBACK; this version of the library is not supported")


GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
"""Arguments that transformers gives to every schedule."""


@functools.cache
def schedule_arguments(name: str) -> frozenset[str]:
    """The arguments of a schedule of transformers that a user may give."""
    package = _package("transformers")
    members = _members("trainer_utils.py", "SchedulerType")
    functions, arguments = {}, {}
    for node in ast.parse((package / "optimization.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            arguments[node.name] = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
        elif isinstance(node, ast.Assign) and node.targets[0].id == "TYPE_TO_SCHEDULER_FUNCTION":
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                functions[members[key.attr]] = value.id
    return frozenset(arguments[functions[name]] - GIVEN)


@functools.cache
def model_fields(model_type: str) -> frozenset[str]:
    """Names of the fields of transformers' config class for `model_type`."""
    package = _package("transformers")
    folder = package / "models" / model_type.replace("-", "_")
    file = folder / f"configuration_{folder.name}.py"
    if not file.is_file():
        known = [p.name for p in (package / "models").iterdir() if p.is_dir() and p.name[0] != "_"]
        raise RequestError(f"transformers has no model type {model_type!r}{did_you_mean(model_type, known)}")
    names = _annotated(package / "configuration_utils.py", "PreTrainedConfig")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names |= {argument.arg for argument in node.args.args}
        elif isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "attribute_map" for t in node.targets
        ):
            names |= set(ast.literal_eval(node.value))
    return frozenset(names - {"self"})
