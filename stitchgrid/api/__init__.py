"""What `import stitchgrid` offers: launches, stores, answers and measures in Python."""
