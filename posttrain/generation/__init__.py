"""Sampling completions: the `Generator` protocol, on a transformers model (`local`) and on vLLM (`vllm`).

A completion is what was sampled; verdicts, groups and files belong to `posttrain.rollouts`. Left out: loading
models and rendering prompts. It imports rundir, data, recipe and base.
"""
