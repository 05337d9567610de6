"""What two layers are compared with: `catalogue` names the kinds, the sub-packages hold their maths."""
