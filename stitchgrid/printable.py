"""Text from elsewhere -> text that can be shown: names, errors and logs in a store may hold anything."""

import re

KEPT = "\n\t"
MARKUP = re.compile(r"([\\`*\[\]|#~!])")  # of Markdown
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # a backslash does not hide these from all readers


def printable(text: str) -> str:
    r"""Return text that cannot steer a terminal, nor turn the direction of what is around it.

    >>> printable("\x1b[31mred\n")
    '\ufffd[31mred\n'
    """
    return "".join(char if char.isprintable() or char in KEPT else "\N{REPLACEMENT CHARACTER}" for char in text)


def as_markdown(text: str) -> str:
    """Return text that Markdown shows as it stands: no markup, no link, no HTML; line breaks stay.

    >>> as_markdown("a|b <c> [d](e)")
    'a\\\\|b &lt;c&gt; \\\\[d\\\\](e)'
    """
    return MARKUP.sub(r"\\\1", printable(text)).translate(ENTITIES)
