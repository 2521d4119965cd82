"""Completions sampled and judged in groups: for training on them, for pairs, for success rates."""
