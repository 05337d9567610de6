"""Architecture word + weights -> frozen network; where it can be cut; how it is trained."""

from stitchgrid.private_folder import keep_compiled_code_private

keep_compiled_code_private()  # before torch's compiler is imported, which makes its folder at once
