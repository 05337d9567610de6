"""Stitchers by their definitions: each kind has a file and a function of its name.

In closed form it is that of a map, on explicit float64 matrices; of a trained kind it makes what the stitched network
follows.
"""
