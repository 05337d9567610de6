"""The architectures that ship with stitchgrid, one family a file; all of them can be traced by torch.fx."""
