"""Text from elsewhere -> text that can be shown: names, errors and logs in a store may hold anything."""

KEPT = "\n\t"


def printable(text: str) -> str:
    r"""Return text that cannot steer a terminal, nor turn the direction of what is around it.

    >>> printable("\x1b[31mred\n")
    '\ufffd[31mred\n'
    """
    return "".join(char if char.isprintable() or char in KEPT else "\N{REPLACEMENT CHARACTER}" for char in text)
