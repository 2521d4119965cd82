"""The table in posttrain/training/README.md, made from posttrain/recipe/library_fields.yaml.

    python -m tests.training.settings_page      # writes it below the heading "The table"

Left out: the libraries' defaults, which are in the table itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from posttrain import training
from posttrain.recipe.library_fields import BASE, STAGES, Field, table

PAGE = Path(training.__file__).with_name("README.md")
HEADING = "\n## The table\n"
ABOUT = """
A star: `train.extra` (of LoraConfig: `model.lora.options`) may set the field. TRL's classes also have
the fields of TrainingArguments, with the same decisions.
"""
WHERE = {
    BASE: "transformers: all stages that train",
    "SFTConfig": "trl: sft",
    "DPOConfig": "trl: dpo, kto included",
    "GRPOConfig": "trl: rlvr",
    "LoraConfig": "peft: `model.lora`",
    "AcceleratorConfig": "transformers: what it gives to accelerate",
}


def page() -> str:
    """The whole page, with the text above the table as it is."""
    text, heading, _ = PAGE.read_text(encoding="utf-8").partition(HEADING)
    return text + heading + ABOUT + "".join(_section(name) for name in table())


def own_fields(class_name: str) -> dict[str, Field]:
    """The rows of a class that it does not share with TrainingArguments."""
    base = {} if class_name == BASE or class_name not in STAGES.values() else table()[BASE]
    found = table()[class_name]
    return {k: f for k, f in found.items() if k not in base or _same_as(f) != _same_as(base[k])}


def _same_as(field: Field) -> Field:
    """What decides a field, without the library's default."""
    return replace(field, default=None, since="", before=None)


def _section(class_name: str) -> str:
    about = WHERE.get(class_name, "deepspeed" if class_name.startswith("DeepSpeed") else "accelerate")
    return f"\n### {class_name} ({about})\n\n" + "\n".join(_lines(own_fields(class_name))) + "\n"


def _lines(rows: dict[str, Field]) -> list[str]:
    """One line for each decision, with all its fields."""
    by: dict[str, list[str]] = defaultdict(list)
    for name, row in rows.items():
        by[_decision(row)].append(f"`{name}`" + ("\\*" if row.open else ""))
    found = [f"| {', '.join(names)} | {decision} |" for decision, names in by.items()]
    return ["| field | decided by |", "|---|---|", *found]


def _decision(row: Field) -> str:
    why = f": {row.why}" if row.why else ""
    if row.kind == "recipe":
        return f"`{row.value}`{why}"
    if row.kind == "set":
        shown = "null" if row.value is None else str(row.value)
        return f"set to `{shown.lower() if isinstance(row.value, bool) else shown}`{why}"
    kinds = {"derived": "computed", "rely": "the library's default", "none": "no effect"}
    return f"{kinds[row.kind]}: {row.value}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
