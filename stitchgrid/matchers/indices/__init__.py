"""Structural indices: no network is run past the two layers. One kind per file, pure functions of moments or Grams."""
