"""Questions from templates in the form of GSM-Symbolic (Mirzadeh et al. 2024, arXiv 2410.05229).

A template is a question with slots, what each slot may be, conditions, and the answer as an expression. Its
text is data: nothing of it is executed (`language.py`). Left out: new templates, and the NoOp variant, whose
templates are not released.
"""
