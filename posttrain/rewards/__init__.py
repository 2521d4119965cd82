"""Rewards: functions that judge a completion. A new one is a small file here and a name in the import below."""

from posttrain.rewards import math  # noqa: F401  (importing registers)
from posttrain.rewards.batch import score, score_batch
from posttrain.rewards.registry import REWARDS, bind, reward

__all__ = ["REWARDS", "bind", "reward", "score", "score_batch"]
