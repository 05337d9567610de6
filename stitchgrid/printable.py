"""Text from elsewhere -> text that can be shown: names, errors and logs in a store may hold anything."""

import re

KEPT = "\n\t"
MARKUP = re.compile(r"([\\`*\[\]|#~!$]|(?<![^\W_])_|_(?![^\W_]))")  # of Markdown
LINKED = re.compile(r"(\w)(:)(?=//)|(?<=\bwww)()(\.)|(\w)(@)(?=\w)", re.IGNORECASE)  # what readers make links of
ADDRESS = re.compile(r"(?<!\w)\w+://[^\s\"']+")  # looked for at beginnings of words alone: one may be very long
USER = re.compile(r"(?<!\w)(\w+://)[^\s/?#]*@")
PARAMETER = re.compile(r"([?&;#](?!(?:region|endpoint_override)=)(?:[\w.%-]+=)?)[^&?;#]+")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # a backslash does not hide these from all readers


def printable(text: str) -> str:
    r"""Return text that cannot steer a terminal, nor turn the direction of what is around it.

    >>> printable("\x1b[31mred\n")
    '\ufffd[31mred\n'
    """
    return "".join(char if char.isprintable() or char in KEPT else "\N{REPLACEMENT CHARACTER}" for char in text)


def in_one_line(text: str) -> str:
    r"""Return printable text of one line: names in a store may have line breaks, and would forge lines.

    >>> in_one_line("a\nb")
    'a\\nb'
    """
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def indented(text: str) -> str:
    """Return text of which no line but the first begins where lines of its surroundings do."""
    return text.replace("\n", "\n  ")


def shortened(text: str, longest: int = 2_000) -> str:
    """Return text of which the middle of each line is cut where the line is longer than anybody reads.

    >>> shortened("a" * 9, longest=6), shortened("ab", longest=6)
    ('aaaa ... (9 characters) aa', 'ab')
    """
    end = longest // 3
    return "\n".join(
        line
        if len(line) <= longest
        else f"{line[: longest - end]} ... ({len(line)} characters) {line[len(line) - end :]}"
        for line in text.split("\n")
    )


def is_text(text: str) -> bool:
    r"""Return whether text can be written as UTF-8, as a file name of other bytes cannot.

    >>> is_text("caf\u00e9"), is_text("caf\udce9")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_markdown(text: str) -> str:
    """Return text that Markdown shows as it stands: no markup, no link, no HTML; line breaks stay.

    >>> as_markdown("a|b <c> [d](e)")
    'a\\\\|b &lt;c&gt; \\\\[d\\\\](e)'
    """
    shown = MARKUP.sub(r"\\\1", printable(text)).translate(ENTITIES)
    return LINKED.sub(_unlinked, shown)


def _unlinked(found: re.Match[str]) -> str:
    """Return the same to see, of which nobody makes a link: its mark as a number."""
    *before, mark = (one for one in found.groups() if one is not None)
    return f"{''.join(before)}&#{ord(mark)};"


def masked(text: str) -> str:
    """Return text without what may be secret in its addresses: users, passwords, and parameters such as signatures.

    >>> masked("no answer from 'http://me:word@host:1/p?sig=word&x=word', s3://bucket/x?region=eu")
    "no answer from 'http://***@host:1/p?sig=***&x=***', s3://bucket/x?region=eu"
    """
    return ADDRESS.sub(lambda found: PARAMETER.sub(r"\1***", USER.sub(r"\1***@", found[0])), text)
