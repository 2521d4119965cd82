"""Continuations of prefixes of a completion, for the values of its solution steps (step_pairing.py).

The random stream of a continuation belongs to (position of the prompt, sample, prefix), so it is the same in
any chunk, on any rank and after any restart. A continuation may be as long as a completion. Left out:
computing a shared prefix once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.data.order import key_of
from posttrain.data.template import Template
from posttrain.data.tokenize import prompt_text
from posttrain.generation.base import Generator, completion_text
from posttrain.recipe.sections import Rollout
from posttrain.rewards.compose import Composite
from posttrain.rollouts.groups import Prompt, sampling_of
from posttrain.rollouts.records import Row
from posttrain.rollouts.step_pairing import Continuation


class Continuer:
    """Samples continuations with `generator` and scores prefix and continuation together.

    The prompt is rendered with `template` and tokenised with `tokenizer`; both belong to the generator's
    model, which may differ from the model that sampled the prefix. `on_scored` is called with the numbers of
    continuations and failed checks.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Any,
        template: Template,
        rewards: Composite,
        rollout: Rollout,
        seed: int,
        on_scored: Callable[[int, int], None] = lambda scored, failed: None,
    ) -> None:
        self.generator, self.tokenizer, self.template = generator, tokenizer, template
        self.rewards, self.rollout, self.seed, self.on_scored = rewards, rollout, seed, on_scored
        self.positions = getattr(generator, "positions", None)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._ids(text))

    def of(self, prompt: Prompt) -> Callable[[Row, list[str], int], list[list[Continuation]]]:
        """The `ContinueFrom` for completions of `prompt`; none if a prefix fills the model's positions."""
        start = self._ids(prompt_text(prompt.asked.rendered(), self.template))
        row = prompt.asked.example()

        def continue_from(completion: Row, prefixes: list[str], k: int) -> list[list[Continuation]]:
            heads = [self._ids(prefix) for prefix in prefixes]
            room = self.positions or float("inf")
            fit = [i for i, head in enumerate(heads) if len(start) + len(head) < room]
            drawn = self.generator.generate(
                [start + heads[i] for i in fit],
                k,
                sampling_of(self.rollout),
                self.seed,
                streams=[_stream(completion, i) for i in fit],
            )
            texts = [self._after(heads[fit[one.prompt_index]], one.token_ids, one.ended) for one in drawn]
            whole = [prefixes[fit[one.prompt_index]] + text for one, text in zip(drawn, texts, strict=True)]
            graded = self.rewards.grade(whole, [row] * len(whole), self.rollout.deadline)
            self.on_scored(len(graded), sum(g.failed for g in graded))
            found: list[list[Continuation]] = [[] for _ in prefixes]
            for one, text, verdict in zip(drawn, texts, graded, strict=True):
                # a call that has an end of its own is not the end of a reply
                ended = one.finish == "stop" and one.token_ids[-1] not in self.template.calls_end
                found[fit[one.prompt_index]].append(Continuation(text, ended, verdict.success, verdict.value))
            return found

        return continue_from

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _after(self, head: list[int], ids: list[int], ended: int) -> str:
        """The text of `ids` after `head`, without the last `ended` of them; decoded together, because some
        tokenizers drop a space at the start."""
        before = completion_text(self.tokenizer, head)
        both = completion_text(self.tokenizer, [*head, *ids], ended)
        if both.startswith(before):
            return both[len(before) :]
        return completion_text(self.tokenizer, ids, ended)


def _stream(completion: Row, prefix: int) -> int:
    """Below 2^63, as the generator requires; too large to be the position of a prompt."""
    key = key_of("continuation", completion["position"], completion["sample"], prefix)
    return key >> 1
