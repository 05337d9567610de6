"""The kinds of matchers that compare two layers: `registry` lists them, the sub-packages hold their maths."""
