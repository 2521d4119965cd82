"""Rewards: functions that judge a completion. A new one is a small file here and a line in catalogue.py."""

from posttrain.rewards.engine.batch import score, score_batch
from posttrain.rewards.registry import REWARDS, Bound, bind, load_all, reward

__all__ = ["REWARDS", "Bound", "bind", "load_all", "reward", "score", "score_batch"]
