"""The report: run directories -> facts -> sentences -> a page, Markdown, a model card, the terminal.

Read in this order: `numbers` (arithmetic on scores and metrics), `facts` (what a stage did), `measured`
(which runs measured the same), `sides` (which runs are seeds of one recipe) with `swept` (their place in a
sweep), `differences` (of two sides, with intervals), `unions` (attempts split over models), `openings` (the
scores that a run started from), `controls` (a run at its best), `losses` (which were trained with the same
loss), `story` (one side on one task), `findings` with `chains`, `comparison` and `control_words` (sentences),
`alerts` (warnings), `text` (numbers and names as text), `tables`, `score_tables` and `side_tables` (plain
values), `axes` (steps, tokens, rollouts, flops), `plots`, `control_plots`, `side_plots`, `step_plots`,
`training_pictures` and `training_figures` (pictures, drawn by `svg`), `task_parts` and `sweep_page` (parts of
the page); then the outputs `page`, `compare`, `markdown`, `card`, `scorecard` and `terminal`. Everything is
computed from files that rundir reads. Left out: anything that loads a model or writes into a run other than
its report, scorecard and card. May import evaluate (its formulas, not its scoring), rundir, recipe and below;
no torch.
"""
