"""From sources to batches: read rows, map their columns, render, tokenise, mix, order, collate."""
