"""Which rewards there are, and the module that registers each: a module is imported when its reward is asked for."""

from __future__ import annotations

MODULES = {
    "choice": "choice",
    "code": "code",
    "combine": "combine",
    "contains": "text",
    "exact": "text",
    "f1": "text",
    "format": "format",
    "instructions": "instructions",
    "judge": "judge",
    "language": "language",
    "length_target": "shaping",
    "math": "math",
    "overlong": "shaping",
    "qwen_math_shaping": "reward_model",
    "reasoning_gym": "reasoning_gym",
    "regex": "regex",
    "repetition": "shaping",
    "reward_model": "reward_model",
    "steps": "steps",
}
"""Name of the reward -> its module in this package. A new reward is a file and a line here."""
