"""Scoring: tasks and metrics, one checkpoint at a time (`checkpoint.py`), rows on disk (`store.py`), the report."""
