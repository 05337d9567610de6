"""Descriptions of what is computed from layers while images pass: of which layers, on how many images, at which cost.

The engine's accumulators are built from these descriptions; plans, memory, estimates and benchmarks add them up. This
package does not import torch.
"""
