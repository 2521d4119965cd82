"""Scoring: how good a checkpoint is at a task, with intervals.

`tasks/` has the problems and what judges a reply; `score` runs one model on one task; `checkpoint` loads a
checkpoint, shares the work over the ranks and stores the rows; `values` goes from rows to metrics; `metrics`,
`intervals`, `seeds`, `student` and `exact` have the mathematics; `settings` tells when two scores measure the
same thing. Left out: the format of scores.jsonl (rundir), tables and pages (report), and when a run is scored
(training calls the scorer that the stages hand in). May import models, rewards, generation, rundir, data,
recipe and below; imports neither training nor report. `tasks/` and `settings` need no torch.
"""
