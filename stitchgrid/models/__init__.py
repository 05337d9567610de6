"""Architecture word + weights -> frozen network; where it can be cut; how it is trained. Imports nothing itself."""
