"""Stitchers: a map from the source's layer into the target's, fitted or trained. One kind per file."""
