"""Log-probabilities of the options of a question, each as the continuation of one prompt.

Prompt and option are encoded together, as a text that a model reads is, and split where the tokens of the
prompt end. White space at the end of a prompt goes to the continuation, with which a tokenizer may merge it;
so does what an option changes of the prompt's last tokens, and then for all options of a question alike.
Options that differ only in their last token, such as letters, take one forward pass together. Left out: one
pass over a prompt that longer options share.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch

from posttrain.errors import RequestError, WorkError
from posttrain.evaluate.exact import answer_logits
from posttrain.evaluate.values import Row
from posttrain.recipe import schema
from posttrain.types import Problem

BLANK = re.compile(r"_{3,}")
"""The gap of a text that an option fills."""


Space = Literal["auto", "always", "never"]


class Question(NamedTuple):
    """Tokens of a prompt, and of each continuation."""

    prompt: list[int]
    options: list[list[int]]


def encode(tokenizer: Any, context: str, continuations: list[str], keep_space: bool = False) -> Question:
    """The tokens of `context` and of each text that continues it.

    Where the tokens of the context begin those of both together, these are the tokens that lm-eval scores.
    Where no token of the context is left, the token before texts stands for it. `keep_space`: white space at
    the end belongs to the context, as that of a chat template does.
    """
    kept = context if keep_space else context.rstrip() or context
    whole = [kept, *(context + text for text in continuations)]
    prompt, *both = tokenizer(whole, add_special_tokens=False)["input_ids"]
    shared = min(_common(prompt, each) for each in both)
    return Question(prompt[:shared] or begin(tokenizer), [each[shared:] for each in both])


def _common(a: list[int], b: list[int]) -> int:
    """Number of tokens with which both begin."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def filled(tokenizer: Any, text: str, option: str) -> Question | None:
    """`text` with `option` in its one gap; all of it is scored, after the token that begins texts. None where
    it has no gap, or several. A tokenizer without such a token leaves the first token unscored."""
    if len(BLANK.findall(text)) != 1:
        return None
    ids = tokenizer(BLANK.sub(lambda _: option, text), add_special_tokens=False)["input_ids"]
    start = begin(tokenizer)
    return Question(start, [ids]) if start else Question(ids[:1], [ids[1:]])


def begin(tokenizer: Any) -> list[int]:
    """The token before a text: begin of text, else end of text; empty where the tokenizer has neither."""
    found = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [token for token in found if token is not None][:1]


@torch.inference_mode()
def option_log_probs(
    model: Any, questions: list[Question], batch_size: int = 64, temperatures: Sequence[float] = (1.0,)
) -> list[list[list[float]]]:
    """Natural logarithm of the probability of each option: [question][temperature][option].

    The probability of a token at temperature t is the softmax of logits / t. Sequences are batched in the
    order given.

    Raises:
        WorkError: a log-probability is not finite.
    """
    training = model.training
    model.eval()
    sequences = [each for question in questions for each in _sequences(question)]
    found: list[list[list[float]]] = []
    try:
        for start in range(0, len(sequences), batch_size):
            found += _batch(model, sequences[start : start + batch_size], temperatures)
    finally:
        model.train(training)
    if not all(map(math.isfinite, (logp for each in found for at in each for logp in at))):
        raise WorkError("the model produces numbers that are not finite, so it cannot be scored")
    parts = iter(found)
    return [_together([next(parts) for _ in _sequences(question)]) for question in questions]


class _Sequence(NamedTuple):
    """`lead` follows the prompt; then each of `ends` might."""

    prompt: list[int]
    lead: list[int]
    ends: list[int]


def _sequences(question: Question) -> list[_Sequence]:
    prompt, options = question
    lead = options[0][:-1]
    if all(option[:-1] == lead for option in options):
        return [_Sequence(prompt, lead, [option[-1] for option in options])]
    return [_Sequence(prompt, option[:-1], option[-1:]) for option in options]


def _together(parts: list[list[list[float]]]) -> list[list[float]]:
    """[sequence][temperature][end] -> [temperature][option]."""
    return [[logp for part in parts for logp in part[t]] for t in range(len(parts[0]))]


def _batch(model: Any, sequences: list[_Sequence], temperatures: Sequence[float]) -> list[list[list[float]]]:
    """[sequence][temperature][end]."""
    answers = [each.lead + each.ends[:1] for each in sequences]
    below = answer_logits(model, [each.prompt for each in sequences], answers)  # [answer tokens, V]
    below = below.sub_(below.max(1, keepdim=True).values)
    rows, tokens, last = [], [], -1
    for lead, ends in ((each.lead, each.ends) for each in sequences):
        rows += [*range(last + 1, last + 1 + len(lead)), *[last + 1 + len(lead)] * len(ends)]
        tokens += lead + ends
        last += len(lead) + 1
    at = torch.tensor(rows, device=below.device)
    target = below[at, torch.tensor(tokens, device=below.device)]
    sums: list[list[list[float]]] = [[] for _ in sequences]
    for temperature in temperatures:
        normaliser = (below / temperature).exp_().sum(1).log_()
        values = iter((target / temperature - normaliser[at]).double().cpu().tolist())
        for found, each in zip(sums, sequences, strict=True):
            before = sum(next(values) for _ in each.lead)
            found.append([before + next(values) for _ in each.ends])
    return sums


def answered(
    model: Any,
    tokenizer: Any,
    task: schema.Task,
    space: Space,
    problems: list[Problem],
    asked: list[Row],
    others: list[str],
) -> list[Row]:
    """The rows of `problems`, whose rows so far are `asked`; `others`: the prompt of each without its
    question, empty where the task has none. `space`: whether one stands before a continuation; `auto`: where
    the prompt does not end in white space.

    `options` of a row has for each option `text`, its length in `bytes` and `characters`, the number of
    `tokens`, `logp`, and where the task asks for them `unconditional`, the log-probability after the other
    prompt, and `filled` and `filled_tokens`, that of the text with the option in its gap; `at` has the
    log-probabilities at further temperatures.

    Raises:
        RequestError: a question does not fit the model, or an option has no tokens.
        WorkError: as `option_log_probs`.
    """
    every = [task.temperature, *task.temperatures]
    questions: list[Question] = []
    kinds: list[list[tuple[str, int]]] = []  # of each problem: what is asked -> its first question
    for problem, row, other in zip(problems, asked, others, strict=True):
        kinds.append([])
        for kind, some in _asked(tokenizer, problem, space, row["prompt"], other).items():
            kinds[-1].append((kind, len(questions)))
            questions += [_fitting(each, model, task.name, problem) for each in some]
    logps = option_log_probs(model, questions, task.batch_size, every)
    rows = []
    for problem, row, starts in zip(problems, asked, kinds, strict=True):
        options = [_sizes(text) for text in problem.extra["continuations"]]
        for kind, start in starts:
            each = range(start, start + (len(options) if kind == "filled" else 1))
            tokens = [len(option) for i in each for option in questions[i].options]
            found = [[logp for i in each for logp in logps[i][t]] for t in range(len(every))]
            _note(options, kind, tokens, found, every)
        rows.append(row | _summary(problem, options, every))
    return rows


def _asked(
    tokenizer: Any, problem: Problem, space: Space, prompt: str, other: str
) -> dict[str, list[Question]]:
    """What is scored of a problem."""
    kept = not (problem.plain or problem.prefill)  # of the template, or of the task
    found = {}
    for kind, context in {"logp": prompt, "unconditional": other}.items():
        if context:
            apart = space == "always" or (space == "auto" and not context[-1:].isspace())
            texts = [" " * apart + text for text in problem.extra["continuations"]]
            found[kind] = [encode(tokenizer, context, texts, kept)]
    gap = problem.extra.get("blank", "")
    whole = [filled(tokenizer, gap, option) for option in problem.extra["choices"]] if gap else [None]
    if None not in whole:
        found["filled"] = whole
    return found


def _fitting(question: Question, model: Any, task: str, problem: Problem) -> Question:
    at = f"task {task}, problem {problem.id}"
    if not question.prompt or not all(question.options):
        what = "an option" if question.prompt else "the prompt"
        raise RequestError(f"{at}: {what} has no tokens of its own")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    size = len(question.prompt) + max(map(len, question.options)) - 1
    if limit is not None and size > limit:
        raise RequestError(f"{at}: {size:,} tokens, but the model has {limit:,} positions")
    return question


def _sizes(text: str) -> Row:
    return {"text": text, "bytes": len(text.encode()), "characters": len(text)}


def _note(
    options: list[Row], kind: str, tokens: list[int], found: list[list[float]], every: Sequence[float]
) -> None:
    """Writes [temperature][option] log-probabilities of one kind into `options`."""
    for i, option in enumerate(options):
        option[kind] = found[0][i]
        if kind != "unconditional":
            option["tokens" if kind == "logp" else "filled_tokens"] = tokens[i]
        for t in range(1, len(every)):
            option.setdefault("at", {}).setdefault(str(float(every[t])), {})[kind] = found[t][i]


def _summary(problem: Problem, options: list[Row], every: Sequence[float]) -> Row:
    """What a row says of its question as a whole, in the words of exact tasks: `logp` is that of the right
    option, `greedy` the most probable one."""
    right, texts = problem.extra["right"], problem.extra["continuations"]
    chosen = max(range(len(options)), key=lambda i: options[i]["logp"])  # the first of equal ones
    found = {"options": options, "right": right, "logp": options[right]["logp"]}
    found |= {"greedy": texts[chosen], "correct": chosen == right}
    if len(every) > 1:
        at = options[right]["at"]
        found["logp_at"] = {str(float(every[0])): found["logp"]} | {t: one["logp"] for t, one in at.items()}
    return found


def without_question(problem: Problem, text: str) -> Problem:
    """`problem` with `text` instead of its question, shots and system message."""
    if problem.plain:
        return replace(problem, prompt=text)
    return replace(problem, messages=[{"role": "user", "content": text}])
