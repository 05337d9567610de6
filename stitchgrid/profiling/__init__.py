"""What a piece of a sweep costs, measured where it would be computed."""
