"""Maps by their definitions, on explicit float64 matrices: each kind has a file and a function of its name."""
