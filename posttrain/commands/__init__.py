"""The commands of `posttrain`, one file each: what it accepts (`arguments`) and what it does (`run`).

`check`, `prepare`, `run`, `sweep`, `train` (the stages), `evaluate`, `show`, `compare`, `report`, `export`,
`chat` and `rewards` are commands, listed in `posttrain/cli.py`; `plans`, `preview`, `prepared_text`,
`rollouts` and `score_rewards` are parts of `check`, `prepare`, `show` and `rewards`, and `arguments` and
`starting` are what several commands share. Commands translate between the command line and the rooms below;
training, scoring and the report are done by the rooms below. They may import every room but `cli`. A module
is imported before its arguments are parsed, so torch and the libraries above it are imported inside `run`:
`--help` and a misspelt option are answered at once.
"""
