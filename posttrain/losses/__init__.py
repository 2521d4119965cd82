"""Losses as pure functions: what a recipe says -> arguments of the kernels. See `confidence.py`."""
