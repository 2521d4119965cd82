"""Preference pairs from a checkpoint: n completions for each prompt, scored by the rewards, paired by a
strategy.

    posttrain pairs my-pairs.yaml pairing.strategy=best_random
    accelerate launch --config_file launch/ddp.yaml -m posttrain.pairs my-pairs.yaml

`runs/<name>/pairs.jsonl` has the pairs and where they come from; a dpo stage reads it as it is. `pairs.json`
counts prompts, pairs and the reasons why a prompt gave no pair. Left out: pairs across prompts, comparing two
replies directly.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

if __name__ == "__main__":  # before the libraries below: they read it when they are imported
    from posttrain.base.process import quiet_libraries

    quiet_libraries()

from posttrain.base.files import stream_jsonl, write_json
from posttrain.data.tokenize import conversation
from posttrain.errors import WorkError
from posttrain.recipe import PairsRecipe
from posttrain.rollouts.continuations import Continuer
from posttrain.rollouts.groups import Prompt, too_many_failed
from posttrain.rollouts.pairing import STRATEGIES, NoPair, Pair, pair_row
from posttrain.rollouts.rates import Rate, by_count, rate_of
from posttrain.rollouts.records import Row, groups_of
from posttrain.rollouts.step_pairing import STEP_STRATEGIES
from posttrain.rundir.directory import RunDir
from posttrain.stages.launch import launch_sampling
from posttrain.stages.sample import Loaded, Sampler, run_sampling

log = logging.getLogger("posttrain.pairs")  # also as `__main__`


class PairsStage:
    """A part has one row for each prompt: its counts, and its pairs or the reason why it has none."""

    product = "pairs"

    def __init__(self, sampler: Sampler) -> None:
        self.recipe: PairsRecipe = sampler.recipe
        self.sampler = sampler
        self.options = self.recipe.pairing
        self.continued = self.failed = 0
        self.make = self._strategy()

    def part(self, prompts: list[Prompt], rows: list[Row]) -> list[Row]:
        self.continued = self.failed = 0
        found = []
        for prompt, of_group in zip(prompts, groups_of(rows), strict=True):
            rate = rate_of(of_group)
            row: Row = {"position": prompt.position, "completions": len(of_group)}
            row |= {"right": rate.right, "judged": rate.judged, "none": None, "pairs": []}
            try:
                pairs = self.make(prompt, of_group)
            except NoPair as nothing:
                row["none"] = nothing.reason
            else:
                row["pairs"] = [self._written(pair, prompt, of_group[0]) for pair in pairs]
            found.append(row)
        self._refuse_failures()
        return found

    def finish(self, parts: Iterator[Row]) -> dict[str, Any]:
        """Raises WorkError where no pair was found; the summary is written all the same."""
        path = self.sampler.run.path / "pairs.jsonl"
        counts: Counter[str] = Counter()
        none: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        rates = []
        with stream_jsonl(path) as add:
            for row in parts:
                counts.update(prompts=1, completions=row["completions"], pairs=len(row["pairs"]))
                none.update([row["none"]] if row["none"] else [])
                rates.append(Rate(row["right"], row["judged"]))
                for pair in row["pairs"]:
                    tokens.update({s: pair[f"{s}_tokens"] for s in ("chosen", "rejected")})
                    add(pair)
        made = counts["pairs"]
        summary = {
            "prompts": counts["prompts"],
            "completions": counts["completions"],
            "pairs": made,
            "none": dict(none.most_common()),
            "success_by_count": by_count(rates, self.recipe.rollout.num_generations),
            "mean_tokens": {side: total / made for side, total in tokens.items()} if made else {},
        }
        reasons = ", ".join(f"{n} {reason}" for reason, n in none.most_common())
        said = f"{made} pairs from {counts['prompts']} prompts"
        said += f"; prompts without a pair: {reasons}" if none else ""
        if not made:
            write_json(self.sampler.run.path / "pairs.json", summary)
            raise WorkError(
                f"{said}: there is nothing to train on. Try other prompts, a higher rollout.num_generations "
                "or rollout.temperature, or another pairing.strategy"
            )
        log.info("%s: %s", path, said)
        return summary

    def _written(self, pair: Pair, prompt: Prompt, about: Row) -> Row:
        by, asked = self.sampler.loaded, prompt.asked.rendered()
        opened = by.template.opened(conversation(asked), asked)
        row = pair_row(pair, asked, about, self.options.strategy, by.origin, opened)
        return row | ({"teacher": self.options.teacher} if self.options.teacher else {})

    def _strategy(self) -> Callable[[Prompt, list[Row]], list[Pair]]:
        """The recipe's strategy as a function of a prompt and its rows."""
        options, seed, name = self.options, self.recipe.seed, self.options.strategy
        if name in STRATEGIES:
            return lambda prompt, rows: STRATEGIES[name](rows, options, seed)
        student = self._continuer(self.sampler.loaded)
        continuer = student
        if name == "cross_model":
            continuer = self._continuer(self.sampler.load(str(options.teacher)))
        return lambda prompt, rows: STEP_STRATEGIES[name](
            rows, options, seed, continuer.of(prompt), student.count
        )

    def _continuer(self, by: Loaded) -> Continuer:
        rollout, rewards = self.recipe.rollout, self.sampler.rewards
        return Continuer(
            by.generator, by.tokenizer, by.template, rewards, rollout, self.recipe.seed, self._count_checks
        )

    def _count_checks(self, continuations: int, failed: int) -> None:
        self.continued += continuations
        self.failed += failed

    def _refuse_failures(self) -> None:
        """Values of solution steps mean nothing where too many checks of a chunk's continuations failed."""
        most = self.recipe.rollout.max_failed
        why = too_many_failed(self.failed, self.continued, most, "of continuations failed")
        if why is not None:
            raise WorkError(why)


def sample(recipe: PairsRecipe) -> RunDir:
    """Run the stage; see `posttrain.stages.sample.run_sampling`."""
    return run_sampling(recipe, PairsStage)


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.pairs RECIPE [key=value ...]`; returns the exit code."""
    return launch_sampling("pairs", sample, argv)


if __name__ == "__main__":
    sys.exit(main())
