"""Tools that every other room may use and that know nothing of training: files and JSONL, named registries,
the ranks and cores of a process, signals, exit codes, and progress on a terminal.

Imports `posttrain.errors`, the standard library and rich; neither torch nor any other room.
"""
