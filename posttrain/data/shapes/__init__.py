"""Shapes: what a stage makes of a row of its sources, each a way to read, tokenise and keep it.

A row is a dict of columns; a shape says which examples it means. `rows`: one example, trained on as it is
(sft). `pairs`: two, chosen and rejected (dpo). `labelled`: one, wanted or not (dpo with the loss kto).
`prompts`: one that is sampled from (rlvr, pairs, pass_rate). `catalogue` lists them. Rows of sft may be
tokens already (tokenised.py). Left out: how an example becomes tokens (tokenize.py), which rows are dropped
and counted (make_table.py).
"""
