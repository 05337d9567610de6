"""Measures what a piece of a sweep costs on the machine that would compute it."""
