"""Rewards: functions that judge a completion. A new one is a small file here and a name in the import below."""

from posttrain.rewards import (  # noqa: F401  (importing registers)
    choice,
    code,
    combine,
    format,
    instructions,
    judge,
    language,
    math,
    reasoning_gym,
    regex,
    reward_model,
    shaping,
    steps,
    text,
)
from posttrain.rewards.batch import score, score_batch
from posttrain.rewards.registry import REWARDS, Bound, bind, reward

__all__ = ["REWARDS", "Bound", "bind", "reward", "score", "score_batch"]
