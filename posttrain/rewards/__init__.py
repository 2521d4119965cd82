"""Rewards: functions that judge a completion. A new one is a small file here and a name in the import below."""

from posttrain.rewards import math  # noqa: F401  (importing registers)
from posttrain.rewards.registry import REWARDS, reward, score

__all__ = ["REWARDS", "reward", "score"]
