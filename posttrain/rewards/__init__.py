"""Rewards: functions that score a completion, for reinforcement learning and for evaluation alike.

The room contains the functions (`simple`, `model_based`, `math`, `code`, `instructions`), the lookup by name
with its options (`registry`, `catalogue`), the engine that scores batches in killable processes (`engine`),
the weighted sum of a recipe (`compose`), and the test of every reward on its own corpus (`conformance`,
`corpora/`). Left out: sampling completions (generation and rollouts), and what training does with a score
(rollouts and training). It imports base, recipe, data and rundir.
"""

from posttrain.rewards.engine.batch import score, score_batch
from posttrain.rewards.registry import REWARDS, Bound, bind, load_all, reward

__all__ = ["REWARDS", "Bound", "bind", "load_all", "reward", "score", "score_batch"]
