"""Completions that go on from a prefix of another one: what gives the steps of a completion their values (steps.py).

A continuation's random stream belongs to (position of the prompt, sample, prefix), so it is the same in any chunk, on any
rank, after any restart. It may be as long as a whole completion. Left out: reading a shared prefix once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.data.order import key_of
from posttrain.data.template import Template
from posttrain.data.tokenize import conversation
from posttrain.generation.base import Generator, Sampling
from posttrain.recipe.sections import Rollout
from posttrain.rewards.compose import Composite
from posttrain.rollouts.groups import Prompt
from posttrain.rollouts.pairing import Row
from posttrain.rollouts.step_pairing import Continuation
from posttrain.types import Example


class Continuer:
    """Samples with `generator` and judges prefix and continuation together.

    The prompt is rendered by `template` and tokenised by `tokenizer`, those of the generator's model, which need not be
    the model that wrote the prefix. `judged` is told the number of continuations and of failed checks.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Any,
        template: Template,
        rewards: Composite,
        rollout: Rollout,
        seed: int,
        judged: Callable[[int, int], None] = lambda all, failed: None,
    ) -> None:
        self.generator, self.tokenizer, self.template = generator, tokenizer, template
        self.rewards, self.rollout, self.seed, self.judged = rewards, rollout, seed, judged
        self.positions = getattr(generator, "positions", None)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._ids(text))

    def of(self, prompt: Prompt) -> Callable[[Row, list[str], int], list[list[Continuation]]]:
        """The `ContinueFrom` of completions of `prompt`. A prefix that fills the model's positions has no continuation."""
        asked = prompt.asked.prompt
        example = Example(prompt=asked) if isinstance(asked, str) else Example(messages=asked)
        text = self.template.render(conversation(example), add_generation_prompt=True)
        start, row = self._ids(text), prompt.asked.example()

        def continue_from(completion: Row, prefixes: list[str], k: int) -> list[list[Continuation]]:
            heads = [self._ids(prefix) for prefix in prefixes]
            room = self.positions or float("inf")
            fit = [i for i, head in enumerate(heads) if len(start) + len(head) < room]
            r = self.rollout
            drawn = self.generator.generate(
                [start + heads[i] for i in fit],
                k,
                Sampling(r.temperature, r.top_p, r.max_new_tokens, r.batch_size),
                self.seed,
                streams=[_stream(completion, i) for i in fit],
            )
            texts = [
                self._after(heads[fit[one.prompt_index]], one.token_ids, one.finish == "stop")
                for one in drawn
            ]
            whole = [prefixes[fit[one.prompt_index]] + text for one, text in zip(drawn, texts, strict=True)]
            graded = self.rewards.grade(whole, [row] * len(whole), r.deadline)
            self.judged(len(graded), sum(g.failed for g in graded))
            found: list[list[Continuation]] = [[] for _ in prefixes]
            for one, said, verdict in zip(drawn, texts, graded, strict=True):
                found[fit[one.prompt_index]].append(
                    Continuation(said, one.finish == "stop", verdict.success, verdict.value)
                )
            return found

        return continue_from

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _after(self, head: list[int], ids: list[int], stopped: bool) -> str:
        """What `ids` say after `head`: some tokenizers write a leading space only where something stands before."""
        before = self.tokenizer.decode(head, skip_special_tokens=True)
        kept = ids[: len(ids) - stopped]
        both = self.tokenizer.decode([*head, *kept], skip_special_tokens=True)
        if both.startswith(before):
            return both[len(before) :]
        return self.tokenizer.decode(kept, skip_special_tokens=True)


def _stream(completion: Row, prefix: int) -> int:
    """Below 2^63, as the generator's streams are; positions of prompts are small numbers, so they do not meet."""
    key = key_of("continuation", completion["position"], completion["sample"], prefix)
    return key >> 1
