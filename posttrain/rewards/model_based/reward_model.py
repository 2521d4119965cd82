"""Scores of a reward model: a transformers sequence-classification model with one output, in batches.

A learned score can be exploited and has no fixed scale, so both rewards here are shaping terms: they never
decide success. Left out: generative reward models (see `judge`), process reward models, servers, several
GPUs.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any, Literal

from posttrain.base.loading import UNLOADED, why_unloaded
from posttrain.base.unsharded import unsharded_loading
from posttrain.base.whole_weights import REPORTED, refuse_partial
from posttrain.errors import RequestError
from posttrain.rewards.engine.batch import score_batch
from posttrain.rewards.registry import Bound, bind, failed, reward
from posttrain.rundir.adapters import CONFIG
from posttrain.rundir.proof import proved
from posttrain.types import Example, Verdict

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_LOADED: dict[tuple[str, str, str], tuple[Any, Any]] = {}
"""(path, device, dtype) -> (model, tokenizer)."""
_LOCK = threading.RLock()
"""One batch at a time: two threads on one device are not faster."""


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def refuse_adapter(model: str) -> None:
    """Raises `RequestError` if `model` is an adapter, known before it is loaded.

    On a base without a score head, transformers would give it one of two outputs, drawn at random.
    """
    if (Path(model) / CONFIG).is_file():
        raise RequestError(
            f"reward model {model} is an adapter: merge it into its base (merge_and_unload of peft) and name "
            "the folder that this gives"
        )


def check_model(example: Example, model: str) -> None:
    """Raises `RequestError` if `model` is an adapter."""
    refuse_adapter(model)


@reward("reward_model", check_row=check_model, runs="batch", limit_s=600.0, shaping=True, model="model")
def reward_model(
    completions: list[str],
    examples: list[Example],
    model: str,
    device: str = "auto",
    dtype: Dtype = "auto",
    batch_size: int = 8,
    max_length: int = 4096,
    squash: bool = True,
) -> list[Verdict]:
    """The score of a reward model; with `squash` its sigmoid, in (0, 1).

    `model`: a folder or a model id whose sequence-classification head has one output. The text is the
    conversation in the tokenizer's chat template if it has one, else the prompt, a newline and the
    completion. `device`: `auto` is the first GPU, or the CPU. A text of more than `max_length` tokens is
    truncated at the end (`details.truncated`). `batch_size`: texts at once; texts of similar length are
    batched together.

    Raises:
        RequestError: an option is out of range, or the model cannot be used.
    """
    scores = _scores(completions, examples, model, device, dtype, batch_size, max_length)
    verdicts = []
    for score, tokens, cut in scores:
        if not math.isfinite(score):
            verdicts.append(failed(f"the reward model gave {score}"))
            continue
        details = {"score": score, "tokens": tokens, "truncated": cut}
        verdicts.append(Verdict(sigmoid(score) if squash else score, details=details))
    return verdicts


def check_row(example: Example, model: str, verifier: str, verifier_options: dict[str, Any] | None) -> None:
    """Raises `RequestError` if the verifier cannot score the row, or `model` is an adapter."""
    refuse_adapter(model)
    _verifier(verifier, verifier_options).check_row(example)


@reward("qwen_math_shaping", check_row=check_row, runs="batch", limit_s=600.0, shaping=True, model="model")
def qwen_math_shaping(
    completions: list[str],
    examples: list[Example],
    model: str,
    verifier: str = "math",
    verifier_options: dict[str, Any] | None = None,
    alpha: float = 0.5,
    device: str = "auto",
    dtype: Dtype = "auto",
    batch_size: int = 8,
    max_length: int = 4096,
) -> list[Verdict]:
    """Qwen2.5-Math's reward: sigmoid(alpha * r_m) + (r_v - 1), of a reward model and a verifier.

    Yang et al. 2024, arXiv 2409.12122: r_v is 1 for a right answer and 0 for a wrong one, so that every right
    answer is above 0 and above every wrong one. `alpha` = 0.5 is the value of the paper. The value is unknown
    if the check of the verifier failed. Name the verifier in `rewards:` too, with weight 0: it decides
    success.
    """
    checked = score_batch(_verifier(verifier, verifier_options), completions, examples)
    scores = _scores(completions, examples, model, device, dtype, batch_size, max_length)
    verdicts = []
    for check, (score, tokens, cut) in zip(checked, scores, strict=True):
        if check.value is None:
            verdicts.append(Verdict(None, check.status, f"{verifier}: {check.reason}"))
            continue
        if not math.isfinite(score):
            verdicts.append(failed(f"the reward model gave {score}"))
            continue
        parts = {"score": score, "verifier": check.value, "tokens": tokens, "truncated": cut}
        value = sigmoid(alpha * score) + (check.value - 1)
        verdicts.append(Verdict(value, reason=check.reason, details=parts))
    return verdicts


def _verifier(name: str, options: dict[str, Any] | None) -> Bound:
    """The verifier of `qwen_math_shaping`. Raises RequestError."""
    bound = bind(name, options, "reward 'qwen_math_shaping': verifier")
    if bound.spec.shaping:
        raise RequestError(f"reward 'qwen_math_shaping': {name!r} is a shaping term, not a verifier")
    return bound


def _scores(
    completions: list[str],
    examples: list[Example],
    model: str,
    device: str,
    dtype: str,
    batch_size: int,
    max_length: int,
) -> list[tuple[float, int, bool]]:
    """(raw score, tokens read, whether the text was truncated) of each text."""
    if batch_size < 1 or max_length < 2:
        raise RequestError("reward model: batch_size must be 1 or more, max_length 2 or more")
    if not completions:
        return []
    with _LOCK:
        scorer, tokenizer = _load(model, device, dtype)
        import torch  # after the model is loaded: registering rewards must not import it

        ids = [_ids(tokenizer, c, e) for c, e in zip(completions, examples, strict=True)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found: list[tuple[float, int, bool]] = [(0.0, 0, False)] * len(ids)
        for start in range(0, len(order), batch_size):
            at = order[start : start + batch_size]
            rows = [ids[i][:max_length] for i in at]
            width = max(map(len, rows))
            pad = tokenizer.pad_token_id
            tokens_B_T = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
            mask_B_T = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
            with torch.inference_mode():
                logits_B_1 = scorer(
                    input_ids=tokens_B_T.to(scorer.device), attention_mask=mask_B_T.to(scorer.device)
                ).logits
            for i, row, score in zip(at, rows, logits_B_1.float()[:, 0].tolist(), strict=True):
                found[i] = (score, len(row), len(ids[i]) > len(row))
    return found


def _ids(tokenizer: Any, completion: str, example: Example) -> list[int]:
    """The token ids of one text; at least one."""
    text = completion.encode("utf-8", "replace").decode()  # tokenizers do not accept a lone surrogate
    turns = list(example.messages or [])
    if tokenizer.chat_template and (turns or example.prompt):
        turns = turns or [{"role": "user", "content": example.prompt}]
        turns = [*turns, {"role": "assistant", "content": text}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        return tokenizer(whole, add_special_tokens=False)["input_ids"] or [tokenizer.pad_token_id]
    before = example.prompt or "\n".join(str(m.get("content")) for m in turns)
    whole = f"{before}\n{text}" if before else text
    return tokenizer(whole)["input_ids"] or [tokenizer.pad_token_id]


def _load(path: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer, loaded once in a process. Raises RequestError if they cannot be used."""
    if (path, device, dtype) in _LOADED:
        return _LOADED[path, device, dtype]
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    refuse_adapter(path)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        with proved(path), unsharded_loading():
            tokenizer = AutoTokenizer.from_pretrained(path)
            scorer, found = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, **REPORTED)
        scorer = scorer.to(place)
    except (*UNLOADED, SafetensorError, StrictDataclassError) as error:
        raise RequestError(f"reward model {path}: {why_unloaded(error, path)}") from None
    refuse_partial(f"reward model {path}", found)
    if scorer.config.num_labels != 1:
        outputs = scorer.config.num_labels
        raise RequestError(f"reward model {path}: it has {outputs} outputs; a reward model has one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise RequestError(f"reward model {path}: its tokenizer has neither a pad nor an eos token")
    scorer.config.pad_token_id = tokenizer.pad_token_id
    _LOADED[path, device, dtype] = scorer.eval(), tokenizer
    return _LOADED[path, device, dtype]
