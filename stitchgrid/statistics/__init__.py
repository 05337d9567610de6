"""What is read of layers while images pass: each statistic says of which layers, on how many images, and its cost.

The engine's accumulators are built from these descriptions; plans, memory, estimates and benchmarks add them up. No
torch here.
"""
