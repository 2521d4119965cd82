"""Every engine with every kind of model and stage: trained, scored, saved, resumed and exported, or refused.

    python -m tests.launch.matrix      # writes the matrix below its heading in launch/README.md; half an hour

A cell is four steps of AdamW on a model of two layers, of which the last two are trained again from the
checkpoint between. Two processes are compared with one that has the same batch. FSDP2 runs through
accelerate's own code on CPU processes, which by itself would run DDP there (`tests/training/cases.py`); every
parameter is sharded under it and under ZeRO-3. Left out: low precision, adapters, several nodes, GPUs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from posttrain.base.files import read_jsonl
from posttrain.models.exporting import write_plain
from posttrain.rundir.checkpoints import all_complete
from tests.conftest import ROOT
from tests.families import EXPERTS, GPT2, LATENT, LINEAR, LOCAL_EXPERTS, MAMBA, SHARED_EXPERT
from tests.tiny import RECIPE, accelerate, child_environment, on_cpu, tiny_model, write_rows
from tests.training import preferences, rollouts
from tests.training.preferences import far, weights

PAGE = ROOT / "launch" / "README.md"
HEADING = "\n## Which models train under which engine\n"
NEXT = "\n## What was tested\n"
GPT = GPT2 | {"n_positions": 512}
GPT |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)  # ranks draw other masks
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def rope(kind: str, before: int, **more: Any) -> dict[str, Any]:
    """Positions that are scaled, of a model with `before` of them in pretraining."""
    given = {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": before, **more}
    return {"rope_parameters": given | ({} if kind == "longrope" else {"factor": 4.0})}


FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("dense", "llama", {}),
    "Phi 2": ("dense", "phi", {}),
    "OLMo 2": ("dense", "olmo2", {}),
    "Granite": ("dense", "granite", {"logits_scaling": 2.0}),
    "GPT-2": ("dense", "gpt2", GPT),
    "Qwen 3": ("dense", "qwen3", {"head_dim": 8}),
    "SmolLM2": ("tied", "llama", {"tie_word_embeddings": True}),
    "Gemma": ("tied", "gemma", {"tie_word_embeddings": True, "head_dim": 8}),
    "Qwen 3 MoE": ("experts", "qwen3_moe", EXPERTS),
    "Mixtral": ("experts", "mixtral", LOCAL_EXPERTS),
    "DeepSeek V3": ("experts", "deepseek_v3", EXPERTS | LATENT),
    "gpt-oss": ("experts", "gpt_oss", LOCAL_EXPERTS | {"head_dim": 8}),
    "LFM2": ("hybrid", "lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Falcon H1": ("hybrid", "falcon_h1", MAMBA),
    "Qwen 3 Next": ("hybrid", "qwen3_next", EXPERTS | SHARED_EXPERT | LINEAR | {"num_hidden_layers": 4}),
    "Mistral": ("window", "mistral", {"sliding_window": 16}),
    "Gemma 2": ("window", "gemma2", {"sliding_window": 16, "head_dim": 8, "final_logit_softcapping": 2.0}),
    "Gemma 3": ("window", "gemma3_text", {"sliding_window": 16, "head_dim": 8}),
    "Command R7B": ("window", "cohere2", {"sliding_window": 16, "logit_scale": 2.0}),
    "Llama 3.1": ("rope", "llama", rope("llama3", 64, low_freq_factor=1.0, high_freq_factor=4.0)),
    "Qwen 3, YaRN": ("rope", "qwen3", {"head_dim": 8} | rope("yarn", 128)),
    "Phi 3, LongRoPE": ("rope", "phi3", rope("longrope", 512, **LONG)),
}
"""Name -> (kind, model type, options of its config)."""
STAGES = ("sft", "dpo", "rlvr")
Key = tuple[str, str]
"""(family, stage)"""
ALL = [(family, stage) for family in FAMILIES for stage in STAGES]
KINDS = ("Llama", "SmolLM2", "Qwen 3 MoE", "LFM2", "Gemma 3", "Qwen 3, YaRN")
"""One family of a kind."""
SLICE = [
    *(("Llama", stage) for stage in STAGES),
    *zip(KINDS[1:], ("dpo", "rlvr", "sft", "rlvr", "dpo"), strict=True),
]
"""Every stage of one of them, one of the others."""
ENGINES = {
    "one process": None,
    "DDP": "cpu2.yaml",
    "ZeRO-2": "zero2.yaml",
    "ZeRO-3": "zero3.yaml",
    "FSDP2, emulated": "fsdp2.yaml",
}
NAMES = dict(zip(ENGINES, ("single", "ddp", "zero2", "zero3", "fsdp2"), strict=True))
TASK = {"name": "arithmetic", "options": {"digits": 1, "train_size": 40, "test_size": 4}}
SETTINGS = [
    "train.max_steps=4",
    "checkpoints.save_steps=2",
    "checkpoints.keep_last=null",
    f"evaluate.tasks={json.dumps([TASK])}",
    "train.optim=adamw_torch",
    "train.adam_epsilon=0.1",  # more than a gradient: differences of rounding are not amplified
    "train.learning_rate=0.5",
    "train.lr_scheduler_type=linear",
]
EQUAL = 1e-5
"""Largest difference of a weight, and relative one of a score, from one process."""
Cells = dict[Key, str]
"""`right`, the sentence that refuses it, or `fails: ` and how."""


@dataclass
class Matrix:
    """Folders of models, recipes and runs, and the runs of one process, with which others are compared."""

    folder: Path
    wholes: dict[Key, Path]

    def cells(self, engine: str, keys: Iterable[Key]) -> Cells:
        """What becomes of each family in a stage: one launch for all of them."""
        asked = {key: self._case(engine, *key) for key in keys}
        found = self._launched(engine, [*asked.values()])
        return {key: self._verdict(engine, key, found.get(case["name"])) for key, case in asked.items()}

    def _case(self, engine: str, family: str, stage: str) -> dict[str, Any]:
        _, kind, options = FAMILIES[family]
        name = f"{family}-{stage}".replace(" ", "_").replace(",", "")
        start = self.folder / "models" / name.rpartition("-")[0]
        if not start.exists():
            tiny_model(start, kind=kind, **options)
        runs = self.folder / NAMES[engine]
        micro = 4 if ENGINES[engine] is None else 2
        more = [f"name={name}", f"model.init={start}", f"output_dir={runs}"]
        more += [f"train.per_device_train_batch_size={micro}"]
        recipe = str(self._recipe(stage, start))
        case = {"name": name, "stage": stage, "recipe": recipe, "overrides": [*SETTINGS, *more]}
        return case | {"again": True}

    def _recipe(self, stage: str, start: Path) -> Path:
        folder = self.folder / stage
        folder.mkdir(exist_ok=True)
        if stage == "sft":
            path, rows = folder / "case.yaml", write_rows(folder / "rows.jsonl")
            path.write_text(RECIPE.format(out=folder, model=start, rows=rows))
            return path
        return (preferences if stage == "dpo" else rollouts).write_recipe(folder, start)

    def _launched(self, engine: str, cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        asked, out = self.folder / "cases.json", self.folder / "results.json"
        asked.write_text(json.dumps(cases))
        out.unlink(missing_ok=True)
        script = [str(ROOT / "tests" / "training" / "cases.py"), str(asked), str(out)]
        place, environment = {"cwd": self.folder, "timeout": 7200}, child_environment(ROOT)
        if (config := ENGINES[engine]) is None:
            command = [sys.executable, *script]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, **place)
        else:
            file = on_cpu(ROOT / "launch" / config, self.folder)
            done = accelerate(file, *script, environment=environment, **place)
        (self.folder / f"{NAMES[engine]}.log").write_text(done.stdout + done.stderr)
        if not out.exists():
            raise RuntimeError(f"{engine}: {done.stderr[-4000:]}")
        return json.loads(out.read_text())

    def _verdict(self, engine: str, key: Key, found: dict[str, Any] | None) -> str:
        if found is None:
            return "fails: it was not run"
        if "error" in found:
            kind, _, sentence = found["error"].partition(": ")
            if kind == "RequestError":
                kind = FAMILIES[key[0]][1]
                sentence = re.sub(r"^model\.init = \S+: ", "", sentence)
                return sentence.replace(f"logits of {kind} ", "logits of this family ")
            return f"fails: {found['error'][:200]}"
        run = Path(found["run"])
        steps = [each.step for each in all_complete(run / "checkpoints")]
        expected = (NAMES[engine], 1 if ENGINES[engine] is None else 2, engine[:4] in ("ZeRO", "FSDP"))
        set_up = (found["engine"], found["world_size"], found["sharded"] or engine == "ZeRO-2")
        again = far(weights(run, 4), load_file(run / "first.safetensors"))
        wrong = {
            "is another engine": set_up != expected,
            "saved other steps": steps[-2:] != [2, 4],
            f"resumes {again:.1e} off": not again <= (0 if ENGINES[engine] is None else 1e-6),
        }
        whole = self.wholes.setdefault(key, run) if ENGINES[engine] is None else self.wholes.get(key)
        if whole is None:
            wrong["trains what one process does not"] = True
        else:
            off = far(weights(run, 4), weights(whole, 4))
            wrong[f"trains {off:.1e} off"] = not off <= EQUAL
            ours, theirs = scores(run), scores(whole)
            wrong["scores otherwise"] = not theirs or not alike(ours, theirs)
        wrong |= exported(run)
        found = "; ".join(each for each, is_so in wrong.items() if is_so)
        return f"fails: {found}" if found else "right"


def scores(run: Path) -> dict[tuple[str, str, str], float]:
    path = run / "scores.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    return {(row["checkpoint"], row["task"], row["metric"]): row["value"] for row in rows}


def alike(some: dict[Any, float], others: dict[Any, float]) -> bool:
    near = (abs(some[key] - value) <= EQUAL * max(1.0, abs(value)) for key, value in others.items())
    return some.keys() == others.keys() and all(near)


def exported(run: Path) -> dict[str, bool]:
    """Empty where what stock transformers loads of the last checkpoint has its logits."""
    from transformers import AutoTokenizer

    last = run / "checkpoints" / "step-000004"
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_plain(str(last), Path(folder), AutoTokenizer.from_pretrained(last), "auto")
        except Exception as error:
            return {f"is not exported: {error}": True}
    return {}


def table(found: dict[str, Cells], families: Iterable[str]) -> str:
    """Rows of families, columns of engines; what is refused, or wrong, is numbered and written out below."""
    notes: dict[str, int] = {}
    lines = [f"| model | kind | {' | '.join(ENGINES)} |", f"|---|---|{'---|' * len(ENGINES)}"]
    for family in families:
        row = [family, FAMILIES[family][0]]
        for engine in ENGINES:
            said = {stage: found[engine][family, stage] for stage in STAGES}
            right = " ".join(stage for stage, what in said.items() if what == "right")
            others = (
                f"{stage}: {notes.setdefault(what, len(notes) + 1)}"
                for stage, what in said.items()
                if what != "right"
            )
            row.append("all" if right == " ".join(STAGES) else "; ".join([*filter(None, [right]), *others]))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(f"{number}. {said}" for said, number in notes.items())])


def page_cells(text: str) -> dict[str, Cells]:
    """What the matrix on a page says, by engine."""
    part = text.partition(HEADING)[2].partition(NEXT)[0].splitlines()
    notes = dict(line.split(". ", 1) for line in part if line[:1].isdigit())
    rows = [[each.strip() for each in line.split("|")[1:-1]] for line in part if line.startswith("|")]
    found: dict[str, Cells] = {name: {} for name in rows[0][2:]} if rows else {}
    for family, _, *cells in rows[2:]:
        for engine, cell in zip(found, cells, strict=True):
            numbered = dict(each.split(": ") for each in cell.split("; ") if ": " in each)
            plain = STAGES if cell == "all" else cell.split("; ")[0].split()
            found[engine] |= {
                (family, stage): "right" if stage in plain else notes[numbered[stage]] for stage in STAGES
            }
    return found


def main() -> int:
    versions = ", ".join(
        f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "trl", "accelerate", "deepspeed")
    )
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(os.environ.get("MATRIX_FOLDER", folder)), {})
        found = {}
        for engine in ENGINES:
            found[engine] = matrix.cells(engine, ALL)
            print(engine, {key: what for key, what in found[engine].items() if what != "right"}, flush=True)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(HEADING)
    if not rest:
        before, _, rest = text.partition(NEXT)
        rest = NEXT + rest
    about = ABOUT.format(versions=versions)
    after = rest[rest.index(NEXT) :]
    PAGE.write_text(f"{before}{HEADING}{about}{table(found, FAMILIES)}\n{after}", encoding="utf-8")
    return 0


ABOUT = """
Tiny models of each family on CPU processes, two of them but for the first column, with {versions};
written by `python -m tests.launch.matrix`, of which `tests/launch/test_matrix.py` runs a part. *all*:
sft, dpo and rlvr train to the weights of one process (1e-5), their checkpoints are scored alike, a run that
is resumed ends with the same weights, and the export has the logits of the checkpoint. A number is a sentence
below, with which the stage refuses. FSDP2 is accelerate's own code on CPU processes, where it would run DDP
by itself; on GPUs it is not measured.

"""


if __name__ == "__main__":
    sys.exit(main())
