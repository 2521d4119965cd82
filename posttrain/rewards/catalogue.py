"""The built-in rewards and the module that registers each; it is imported when the reward is first needed."""

from __future__ import annotations

MODULES = {
    "choice": "simple.choice",
    "code": "code",
    "combine": "simple.combine",
    "contains": "simple.text",
    "exact": "simple.text",
    "f1": "simple.text",
    "format": "simple.format",
    "instructions": "instructions",
    "judge": "model_based.judge",
    "language": "simple.language",
    "length_target": "simple.shaping",
    "math": "math",
    "overlong": "simple.shaping",
    "qwen_math_shaping": "model_based.reward_model",
    "reasoning_gym": "simple.reasoning_gym",
    "regex": "simple.regex",
    "repetition": "simple.shaping",
    "reward_model": "model_based.reward_model",
    "steps": "simple.steps",
}
"""Name of the reward -> its module below `posttrain.rewards`. A new reward is a file and a line here."""
