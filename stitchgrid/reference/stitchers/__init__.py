"""Maps by their definitions, on explicit float64 matrices: a file and a function named like each kind."""
