"""How often a checkpoint solves each prompt: n completions for each prompt, scored by the rewards.

    posttrain pass-rate my-rates.yaml keep.at_least=1 keep.at_most=7

`runs/<name>/prompts.jsonl` has the measured rows of every source with all their columns, and in addition `p`
(share right), `n_right` and `n_judged`, which `loss.p: external` reads. `kept.jsonl` has the rows that are
neither too easy nor too hard (2 to 5 of 8 in Qwen2.5-Math, arXiv 2409.12122). `pass_rate.json` has the
counts. Left out: rates by source.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":  # before the libraries below: they read it when they are imported
    from posttrain.base.process import quiet_libraries

    quiet_libraries()

from posttrain.base.files import stream_jsonl
from posttrain.data.sources import open_rows
from posttrain.errors import WorkError
from posttrain.recipe import PassRateRecipe
from posttrain.rollouts.groups import Prompt
from posttrain.rollouts.rates import Rate, by_count, rate_of
from posttrain.rollouts.records import Row, groups_of
from posttrain.rundir.directory import RunDir
from posttrain.stages.launch import launch_sampling
from posttrain.stages.sample import Sampler, run_sampling

log = logging.getLogger("posttrain.pass_rate")  # also as `__main__`


class PassRateStage:
    """A part has one row for each prompt: its place and how many completions were right."""

    product = "pass_rate"

    def __init__(self, sampler: Sampler) -> None:
        self.recipe: PassRateRecipe = sampler.recipe
        self.run = sampler.run

    def part(self, prompts: list[Prompt], rows: list[Row]) -> list[Row]:
        found = []
        for prompt, of_group in zip(prompts, groups_of(rows), strict=True):
            rate = rate_of(of_group)
            about = {"source": prompt.source, "row": prompt.row, "completions": len(of_group)}
            found.append(about | {"right": rate.right, "judged": rate.judged})
        return found

    def finish(self, parts: Iterator[Row]) -> dict[str, Any]:
        """Where the mixture repeats a prompt, its first measurement counts."""
        rates: dict[tuple[str, int], Rate] = {}
        completions = 0
        for row in parts:
            completions += row["completions"]
            rates.setdefault((row["source"], row["row"]), Rate(row["right"], row["judged"]))
        kept = self._write(rates)
        summary = {
            "prompts": len(rates),
            "completions": completions,
            "kept": kept,
            "unjudged": sum(not rate.judged for rate in rates.values()),
            "success_by_count": by_count(rates.values(), self.recipe.rollout.num_generations),
        }
        keep = self.recipe.keep
        log.info(
            "%s: %d of %d prompts have %d to %d right of %d",
            self.run.path / "kept.jsonl",
            kept,
            len(rates),
            keep.at_least,
            keep.at_most,
            self.recipe.rollout.num_generations,
        )
        return summary

    def _write(self, rates: dict[tuple[str, int], Rate]) -> int:
        """Both files, in the order of the sources; returns the number of rows kept.

        A prompt none of whose completions could be checked is in neither: it has no rate.
        """
        kept, met = 0, 0
        with (
            stream_jsonl(self.run.path / "prompts.jsonl") as add,
            stream_jsonl(self.run.path / "kept.jsonl") as keep,
        ):
            for source in self.recipe.data.sources:
                for number, (_, row) in enumerate(open_rows(source)):
                    rate = rates.get((source.name, number))
                    if rate is None:
                        continue
                    met += 1
                    if rate.judged:
                        add(row | rate.columns())
                    if rate.within(self.recipe.keep):
                        keep(row | rate.columns())
                        kept += 1
            if met < len(rates):
                raise WorkError(
                    f"{len(rates) - met} of {len(rates)} measured rows are no longer in their sources"
                )
        return kept


def sample(recipe: PassRateRecipe) -> RunDir:
    """Run the stage; see `posttrain.stages.sample.run_sampling`."""
    return run_sampling(recipe, PassRateStage)


def main(argv: list[str] | None = None) -> int:
    """`python -m posttrain.pass_rate RECIPE [key=value ...]`; returns the exit code."""
    return launch_sampling("pass_rate", sample, argv)


if __name__ == "__main__":
    sys.exit(main())
