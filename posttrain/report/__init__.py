"""The report: run directories -> facts -> sentences -> a page, Markdown, a model card, the terminal.

Read in this order: `numbers` (arithmetic on scores and metrics), `facts` (what a stage did), `measured`
(which runs measured the same), `controls` (a run at its best), `losses` (which were trained with the same
loss), `story` (one run on one task), `findings` with `chains` and `comparison` (sentences), `alerts`
(warnings), `tables` and `score_tables` (plain values), `plots`, `control_plots`, `step_plots`,
`training_pictures` and `training_figures` (pictures, drawn by `svg`); then the outputs `page`, `markdown`,
`card`, `scorecard` and `terminal`. Everything is computed from files that rundir reads. Left out: anything
that loads a model or writes into a run other than its report, scorecard and card. May import evaluate (its
formulas, not its scoring), rundir, recipe and below; no torch.
"""
