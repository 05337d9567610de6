"""The indices by their definitions, on explicit float64 matrices: each kind has a file and a function of its name.

`READS` says whether the rows of a kind are `flattened` images or those of `rows.compared`.
"""
