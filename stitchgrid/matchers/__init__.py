"""What two layers are compared with: `registry` names the kinds, the sub-packages hold their maths."""
