"""A stage that starts from an adapter starts from the model that was scored.

The oracle is a folder with a full model, made by stock peft (`whole`): what a stage logs and samples from an
adapter equals what it logs and samples from there.
"""

from __future__ import annotations

import builtins
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import dpo, pairs, pass_rate, rlvr, sft
from posttrain.cli import main
from posttrain.errors import RequestError
from posttrain.recipe import load
from tests.tiny import tiny_model, write_rows
from tests.training.preferences import make_labelled, make_pairs

pytestmark = pytest.mark.slow

KINDS = ("llama", "qwen3", "gemma2", "gpt2")
OTHERWISE: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
"""Options of a kind's config besides those of `tiny_model`; a first loss is measured in training mode."""
NAMES = {"gpt2": (["c_attn"], "lm_head", "wte")}
"""Attention, head and embedding, where they are not called as in Llama."""
STAGES = {"sft": sft.train, "dpo": dpo.train, "rlvr": rlvr.train, "pairs": pairs.sample}
STAGES |= {"pass_rate": pass_rate.sample}
TRAIN = {
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "global_batch_size": 8,
    "per_device_train_batch_size": 8,
    "max_steps": 2,
    "logging_steps": 1,
    "report_to": [],
}
EVEN = {
    "rewards": [{"name": "tests.training.rewards_for_rlvr:even", "label": "even"}],
    "rollout": {"num_generations": 4, "max_new_tokens": 12, "batch_size": 32},
}


def model_of(folder: Path, kind: str, tie: bool) -> Path:
    return tiny_model(folder, tie, kind, vocab_size=280, **OTHERWISE.get(kind, {}))


def go(
    out: Path, stage: str, name: str, rows: Path, model: dict[str, Any], cache: str = "", **sections: Any
) -> Path:
    """The run directory of a finished stage. Runs with the same `cache` share one; others have their own."""
    values: dict[str, Any] = {
        "stage": stage,
        "name": name,
        "output_dir": str(out / "runs"),
        "model": model,
        "data": {
            "template": "chatml",
            "max_length": 256,
            "cache_dir": str(out / "cache" / (cache or name) / "rows"),
            "shuffle": False,
            "sources": [{"name": "rows", "path": str(rows)}],
        },
    }
    if stage in ("sft", "dpo", "rlvr"):
        values["train"] = TRAIN | sections.pop("train", {})
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return STAGES[stage](load(path)).path


def logged(run: Path, split: str = "train") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


# ---- the first loss is the last evaluation -----------------------------------------------------------------


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_the_last_evaluation_of_the_parent(tmp_path, kind, tie, record_property):
    """A chain: full, LoRA on the attention, on the head, on the embedding, a head saved whole, full again.

    Ranks differ from stage to stage. The loss of the first step and the held-out loss are over the same rows.
    """
    attention, head, embedding = NAMES.get(kind, (["q_proj", "v_proj"], "lm_head", "embed_tokens"))
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    evaluate = {"heldout": {"source": {"name": "same", "path": str(rows)}, "every_steps": 2}}
    chain = {
        "full": None,
        "attention": {"r": 4, "target_modules": attention},
        "head": {"r": 2, "target_modules": [*attention, head]},
        "embedding": {"r": 3, "target_modules": [*attention, embedding]},
        "saved": {"r": 2, "target_modules": attention, "modules_to_save": [head]},
        "again": None,
    }
    start, ends, apart = model_of(tmp_path / "model", kind, tie), [], {}
    for name, lora in chain.items():
        run = go(tmp_path, "sft", name, rows, {"init": str(start), "lora": lora}, evaluate=evaluate)
        if ends:
            apart[name] = abs(logged(run)[0]["loss"] - ends[-1])
        if kind == "llama" and lora is not None:  # also without an adapter of its own
            plain = {"init": str(run)}
            other = go(tmp_path, "sft", f"{name}-plain", rows, plain, train={"max_steps": 1})
            apart[f"{name}-plain"] = abs(logged(other)[0]["loss"] - logged(run, "heldout")[-1]["loss"])
        ends.append(logged(run, "heldout")[-1]["loss"])
        start = run
    record_property("apart", json.dumps(apart))
    print(f"{kind} {'tied' if tie else 'untied'}: at most {max(apart.values()):.1e}")
    assert max(apart.values()) <= 1e-5, apart
    moves = [abs(a - b) for a, b in zip(ends, ends[1:], strict=False)]
    assert min(moves) > 1e-3, "a stage that changes nothing proves nothing"


# ---- every stage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """`model`, the run `runs/first` of an adapter on it, `foreign` (stock peft's folder), and `whole`."""
    out = tmp_path_factory.mktemp("home")
    model = model_of(out / "model", "llama", False)
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj", "lm_head"]}
    rows = write_rows(out / "rows.jsonl", 16)
    run = go(out, "sft", "first", rows, {"init": str(model), "lora": lora}, train={"max_steps": 5})
    checkpoint = str(run / "checkpoints" / "step-000005")
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), checkpoint)
    trained.save_pretrained(out / "foreign")
    config = out / "foreign" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "model"}))
    trained.merge_and_unload().save_pretrained(out / "whole")
    AutoTokenizer.from_pretrained(model).save_pretrained(out / "whole")
    make_pairs(out / "pairs.jsonl", 16)
    make_labelled(out / "labelled.jsonl", 16)
    return out


@pytest.fixture(params=["run", "checkpoint", "foreign"])
def start(request, home) -> str:
    """The adapter as a user may name it; the foreign folder has no tokenizer and a relative base."""
    names = {"run": "runs/first", "checkpoint": "runs/first/checkpoints/step-000005", "foreign": "foreign"}
    return str(home / names[request.param])


LORA = {"r": 2, "target_modules": ["k_proj", "lm_head"]}


def log_probs(place: Path) -> float:
    """Mean over the chosen replies of pairs.jsonl of their log-probability, with stock transformers."""
    model, tokenizer = (k.from_pretrained(place) for k in (AutoModelForCausalLM, AutoTokenizer))
    found = []
    for line in (place.parent / "pairs.jsonl").read_text().splitlines()[:8]:
        row = json.loads(line)
        asked = [{"role": "user", "content": row["prompt"]}]
        before = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        reply = tokenizer(row["chosen"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None]).sum().item())
    return sum(found) / len(found)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_dpo_starts_at_ln_2_from_the_model_that_was_scored(home, start, lora, tmp_path):
    """Precomputed and live, and with the adapter named as the reference; log-probabilities by stock
    transformers."""
    want = log_probs(home / "whole")
    for name, preference in {
        "precomputed": {},
        "live": {"reference": "live"},
        "named": {"reference_model": start},
    }.items():
        run = go(
            tmp_path,
            "dpo",
            name,
            home / "pairs.jsonl",
            {"init": start, "lora": lora},
            preference=preference,
            train={"max_steps": 1},
        )
        (first,) = logged(run)
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6), name
        assert first["logps/chosen"] == pytest.approx(want, rel=1e-5), name


def test_a_named_reference_that_is_an_adapter(home, start, tmp_path):
    """The start is another model, so that the reference counts: as with `whole` for it, live or not."""
    found = {}
    for name, place, mode in (
        ("whole", str(home / "whole"), "precomputed"),
        ("adapter", start, "precomputed"),
        ("live", start, "live"),
    ):
        given = {"reference_model": place, "reference": mode, "beta": 0.5}
        model = {"init": str(home / "model")}
        rows = home / "pairs.jsonl"
        found[name] = logged(go(tmp_path, "dpo", name, rows, model, preference=given))[0]["loss"]
    assert abs(found["whole"] - math.log(2)) > 0.01
    assert found["adapter"] == pytest.approx(found["whole"], abs=1e-5)
    assert found["live"] == pytest.approx(found["whole"], abs=1e-5)


ADAPTERS: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (False, {}),
    "bias-all": (False, {"options": {"bias": "all"}}),
    "bias-lora": (False, {"options": {"bias": "lora_only"}}),
    "pissa": (False, {"options": {"init_lora_weights": "pissa"}}),
    "olora": (False, {"options": {"init_lora_weights": "olora"}}),
    "orthogonal": (False, {"options": {"init_lora_weights": "orthogonal"}}),
    "dora": (False, {"options": {"use_dora": True}}),
    "head": (True, {"target_modules": ["q_proj", "lm_head"]}),
    "embedding": (True, {"target_modules": ["q_proj", "embed_tokens"]}),
    "head-saved": (True, {"modules_to_save": ["lm_head"]}),
    "embedding-saved": (True, {"modules_to_save": ["embed_tokens"]}),
    "tokens": (False, {"options": {"trainable_token_indices": [5, 6]}}),
}
"""Name -> (head and embedding are one weight, what `model.lora` says besides r and q_proj)."""


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_reference_is_the_start_model_whatever_the_adapter_trains(tmp_path, name):
    """Live and precomputed losses agree at every step, and the first is ln 2; rlvr's first KL is 0. Adapters
    that train biases, or take a part out of the base, leave another model behind when they are off."""
    tie, more = ADAPTERS[name]
    model = tiny_model(tmp_path / "model", tie, vocab_size=280, attention_bias=True)
    own = {"init": str(model), "lora": {"r": 4, "target_modules": ["q_proj"]} | more}
    pairs_file, prompts = tmp_path / "pairs.jsonl", write_rows(tmp_path / "rows.jsonl", 4)
    make_pairs(pairs_file, 16)
    losses = []
    for kind in ("live", "precomputed"):
        preference = {"loss": "dpo", "beta": 0.5, "reference": kind}
        steps = {"max_steps": 3, "learning_rate": 1.0}
        run = go(tmp_path, "dpo", kind, pairs_file, own, preference=preference, train=steps)
        losses.append([row["loss"] for row in logged(run)])
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert losses[0][0] == pytest.approx(math.log(2), abs=2e-5) and abs(losses[0][2] - losses[0][0]) > 1e-4
    options: dict[str, Any] = EVEN | {"train": {"max_steps": 1}}
    first = logged(go(tmp_path, "rlvr", "rlvr", prompts, own, policy={"beta": 0.1}, **options))[0]
    assert first["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_kto_starts_from_the_model_that_was_scored(home, start, lora, tmp_path):
    rows = home / "labelled.jsonl"
    a, b = (
        logged(
            go(
                tmp_path,
                "dpo",
                name,
                rows,
                {"init": place, "lora": own},
                preference={"loss": "kto"},
                train={"max_steps": 1},
            )
        )[0]
        for name, place, own in (("adapter", start, lora), ("whole", str(home / "whole"), None))
    )
    keys = [key for key in b if key.startswith(("loss", "logps", "rewards", "kl"))]
    assert len(keys) > 3 and {k: a[k] for k in keys} == pytest.approx({k: b[k] for k in keys}, abs=2e-4)


def sampled(run: Path) -> list[tuple[str, Any]]:
    files = sorted((run / "rollouts").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(row["completion"], row["reward"]) for row in rows]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_rlvr_samples_from_the_model_that_was_scored(home, start, lora, tmp_path):
    rows = home / "rows.jsonl"
    options: dict[str, Any] = EVEN | {"train": {"max_steps": 1}}
    oracle = go(tmp_path, "rlvr", "whole", rows, {"init": str(home / "whole")}, **options)
    own = {"init": start, "lora": lora}
    for name, policy in {"start": {"beta": 0.1}, "named": {"beta": 0.1, "reference": start}}.items():
        run = go(tmp_path, "rlvr", name, rows, own, policy=policy, **options)
        assert sampled(run) == sampled(oracle) and len(sampled(run)) == 8
        assert logged(run)[0]["kl"] == pytest.approx(0, abs=1e-6), name
    away = {"init": str(home / "model")}
    kl = [
        logged(go(tmp_path, "rlvr", name, rows, away, policy={"beta": 0.1, "reference": place}, **options))[
            0
        ]["kl"]
        for name, place in (("from", start), ("to", str(home / "whole")))
    ]
    assert kl[0] == pytest.approx(kl[1], rel=1e-4) and kl[1] > 1e-3


def test_pairs_and_rates_are_those_of_the_model_that_was_scored(home, start, tmp_path):
    rows, whole = home / "rows.jsonl", str(home / "whole")
    anyhow = {"pairing": {"strategy": "best_worst"}}
    for stage, more in (("pairs", anyhow), ("pass_rate", {"keep": {"at_least": 0, "at_most": 4}})):
        runs = [
            go(tmp_path, stage, f"{stage}-{name}", rows, {"init": place}, **EVEN, **more)
            for name, place in (("adapter", start), ("whole", whole))
        ]
        assert sampled(runs[0]) == sampled(runs[1]) and len({text for text, _ in sampled(runs[0])}) > 8
    made = []
    for name, teacher in (("taught-adapter", start), ("taught-whole", whole)):
        pairing = {"strategy": "cross_model", "continuations": 2, "teacher": teacher, "step_delimiter": "e"}
        run = go(tmp_path, "pairs", name, rows, {"init": whole}, pairing=pairing, **EVEN)
        found = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
        made.append([(row["chosen"], row["rejected"]) for row in found])
    assert made[0] == made[1] and made[0]


def test_scores_are_those_of_the_model_that_was_scored(home, start, tmp_path, capsys):
    """The task computes exact probabilities and samples nothing."""
    found = []
    for place in (start, str(home / "whole")):
        capsys.readouterr()
        words = ["eval", place, "--task", "arithmetic", "--template", "chatml", "--json"]
        out = ["--out", str(tmp_path / str(len(found)))]
        assert main([*words, *out, "options={digits: 1, train_size: 20, test_size: 4}"]) == 0
        found.append({row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)})
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0]["nll"] > 1


def test_chat_answers_as_the_model_that_was_scored(home, start, monkeypatch, capsys):
    said = []
    for place in (start, str(home / "whole")):
        words = iter(["Count 3.", ""])
        monkeypatch.setattr(builtins, "input", lambda _, words=words: next(words))
        capsys.readouterr()
        assert main(["chat", place, "--temperature", "0", "--max-new-tokens", "8"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


# ---- what reference log-probabilities are kept by ----------------------------------------------------------


def computed(caplog) -> bool:
    """Whether the reference has run since the last call."""
    found = "computing reference log-probabilities" in caplog.text
    caplog.clear()
    return found


def test_reference_log_probabilities_are_kept_by_all_that_the_forward_depends_on(home, tmp_path, caplog):
    """One cache for all; equal weights under another rope, in config.json or in the recipe, start at ln 2."""
    caplog.set_level("INFO")
    whole, a = home / "whole", str(home / "runs" / "first")
    other = shutil.copytree(whole, tmp_path / "other")
    config = other / "config.json"
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}
    config.write_text(json.dumps(json.loads(config.read_text()) | rope))

    def first(name: str, model: dict[str, Any], **sections: Any) -> tuple[float, bool]:
        more = {"train": {"max_steps": 1}} | sections
        run = go(tmp_path, "dpo", name, home / "pairs.jsonl", model, cache="shared", **more)
        return logged(run)[0]["loss"], computed(caplog)

    copied = shutil.copytree(whole, tmp_path / "copy")
    for name, model, anew in (
        ("whole", {"init": str(whole)}, True),
        ("copied", {"init": str(copied)}, False),
        ("rope", {"init": str(other)}, True),
        ("options", {"init": str(whole), "options": rope}, True),
        ("eager", {"init": str(whole), "attention": "eager"}, True),
        ("half", {"init": str(whole), "dtype": "bfloat16"}, True),
        ("adapter", {"init": a}, True),
        ("with-lora", {"init": a, "lora": LORA}, False),
        ("foreign", {"init": str(home / "foreign")}, False),  # the same adapter on the same base
        ("new-token", {"init": str(whole), "add_tokens": ["<new>"]}, True),
    ):
        loss, ran = first(name, model)
        assert loss == pytest.approx(math.log(2), abs=1e-6), name
        assert ran == anew, name
    again = first(
        "new-token-2", {"init": str(whole), "add_tokens": ["<new>"]}, train={"max_steps": 1, "seed": 5}
    )
    assert again == (pytest.approx(math.log(2), abs=1e-6), True), "new rows are drawn with the seed"


def test_a_resumed_run_equals_the_uninterrupted_one(home, tmp_path):
    """With options of the adapter under which loading it does more than reading a pair of matrices."""
    for name, options in {
        "pissa": {"init_lora_weights": "pissa"},
        "dora": {"use_dora": True},
        "tokens": {"trainable_token_indices": [5, 60, 97, 101]},
        "whole": {},
    }.items():
        lora = {"r": 4, "target_modules": ["q_proj"], "options": options}
        lora |= {} if options else {"modules_to_save": ["lm_head", "embed_tokens"]}
        model = {"init": str(home / "runs" / "first"), "lora": lora}
        more = {"train": {"max_steps": 4, "optim": "adamw_torch", "learning_rate": 0.01}}
        more |= {"checkpoints": {"save_steps": 2, "keep_last": None}}
        run = go(tmp_path, "sft", name, home / "rows.jsonl", model, **more)
        last = run / "checkpoints" / "step-000004"
        before = load_file(last / "adapter_model.safetensors")
        shutil.rmtree(last)
        go(tmp_path, "sft", name, home / "rows.jsonl", model, **more)
        after = load_file(last / "adapter_model.safetensors")
        assert before.keys() == after.keys(), name
        assert max(float((before[k] - after[k]).abs().max()) for k in before) <= 1e-6, name


def test_a_relative_base_is_found_from_another_folder(home, tmp_path, monkeypatch):
    """And refused where the working directory has another model of that name."""
    place = str(home / "foreign")
    monkeypatch.chdir(tmp_path)
    plain = {"init": place}
    first = logged(go(tmp_path, "sft", "a", home / "rows.jsonl", plain, train={"max_steps": 1}))[0]["loss"]
    whole = {"init": str(home / "whole")}
    other = logged(go(tmp_path, "sft", "b", home / "rows.jsonl", whole, train={"max_steps": 1}))[0]["loss"]
    assert first == pytest.approx(other, abs=1e-5)
    shutil.copytree(home / "model", tmp_path / "model")
    assert main(["check", str(tmp_path / "a.yaml"), "name=c"]) == 2


@pytest.mark.parametrize(
    ("key", "stage", "recipe"),
    [
        ("model.init", "sft", {}),
        ("preference.reference_model", "dpo", {}),
        ("policy.reference", "rlvr", {"policy": {"beta": 0.1}}),
        ("pairing.teacher", "pairs", {"pairing": {"strategy": "cross_model"}}),
    ],
)
def test_check_says_that_a_base_is_gone(home, tmp_path, capsys, key, stage, recipe):
    """Wherever a model is named, with the file to mend."""
    lost = shutil.copytree(home / "foreign", tmp_path / "lost")
    config = lost / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/m"}))
    section, name = key.split(".")
    sections = recipe | {section: {**recipe.get(section, {}), name: str(lost)}}
    values = {
        "stage": stage,
        "name": "x",
        "output_dir": str(tmp_path),
        "model": {"init": str(home / "model")},
        "data": {"template": "chatml", "sources": [{"name": "r", "path": str(home / "pairs.jsonl")}]},
    }
    values |= {"train": TRAIN} if stage != "pairs" else {}
    values |= EVEN if stage in ("pairs", "rlvr") else {}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{key}: {lost} is an adapter on /gone/m, which does not exist" in said and str(config) in said


def test_check_refuses_to_quantise_under_an_adapter(home, tmp_path, capsys):
    go(tmp_path, "sft", "a", home / "rows.jsonl", {"init": str(home / "runs" / "first")})
    words = ["model.quantization={bits: 4}", "model.lora={r: 2}", "name=b"]
    assert main(["check", str(tmp_path / "a.yaml"), *words]) == 2
    assert "cannot be merged into the quantised weights" in capsys.readouterr().err


# ---- another base in the same place ------------------------------------------------------------------------


@pytest.fixture
def parts(home, tmp_path) -> Path:
    """A copy of `home`, and the adapter of `runs/first` as a folder `adapter` on the copied model."""
    out = tmp_path / "copy"
    shutil.copytree(home, out)
    shutil.copytree(out / "runs" / "first" / "checkpoints" / "step-000005", out / "adapter")
    (out / "adapter" / "COMPLETE").unlink()
    config = out / "adapter" / "adapter_config.json"
    about = json.loads(config.read_text()) | {"base_model_name_or_path": str(out / "model")}
    config.write_text(json.dumps(about))
    return out


def kid(out: Path, name: str = "kid", **sections: Any) -> Path:
    own = {"init": str(out / "adapter"), "lora": LORA}
    train = {"max_steps": 4}
    return go(
        out, "sft", name, out / "rows.jsonl", own, train=train, checkpoints={"save_steps": 2}, **sections
    )


def replace_weights(folder: Path) -> None:
    """Another model of equal shape in the place of this one."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value.flip(0) for name, value in tensors.items()}, file, {"format": "pt"})


def test_an_adapter_is_not_loaded_on_another_base(parts, capsys):
    """Neither scored, nor exported, nor a start: its factors mean nothing there."""
    run = kid(parts)
    facts = json.loads((run / "checkpoints" / "step-000004" / "checkpoint.json").read_text())
    assert len(facts["start"]) == 32
    replace_weights(parts / "model")
    sentence = r"was trained on another model than .*model is now"
    with pytest.raises(RequestError, match=sentence):
        go(parts, "sft", "next", parts / "rows.jsonl", {"init": str(run)})
    for command in (["eval", str(run)], ["export", str(run), str(parts / "out")]):
        assert main([*command]) == 2
        said = capsys.readouterr().err
        assert "was trained on another model" in said or "nothing to score" in said.lower() or "task" in said
    assert not (parts / "out").exists()


def test_a_run_is_not_resumed_on_another_base(parts):
    """The base of its adapter has changed since step 2; the adapter below it likewise."""
    run = kid(parts)
    shutil.rmtree(run / "checkpoints" / "step-000004")
    replace_weights(parts / "model")
    with pytest.raises(RequestError, match="was trained on another model|is no longer the model"):
        kid(parts)
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == ["step-000002"]
