"""posttrain: recipes -> mixture -> trainer -> checkpoint -> scorecard -> report.

The modules of this folder are the public surface: a module for each stage (`sft`, `dpo`, `rlvr`, `pairs`,
`pass_rate`), the command line (`cli`), and the types and errors that every room uses. Each folder is a room
for one kind of work (`data`, `losses`, `rewards`, ...); import from the room you need. This file contains
only the version, so that `posttrain check` starts without torch.
"""

__version__ = "0.1.0"
