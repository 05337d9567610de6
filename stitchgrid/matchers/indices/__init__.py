"""Structural indices: no network is run past the two layers. One kind a file, pure functions of moments or Grams."""
