"""The indices by their definitions, on explicit float64 matrices: a file and a function named like each kind.

Each says in `READS` whether its rows are flattened images, or those in which two layers are `compared`.
"""
