"""Makes text from elsewhere safe to show: names, errors and logs in a store may hold anything."""

import re
from collections.abc import Sequence

KEPT = "\n\t"
MARKUP = re.compile(r"([\\`*\[\]|#~!$]|(?<![^\W_])_|_(?![^\W_]))")  # of Markdown
# Text that Markdown readers turn into links.
LINKED = re.compile(r"(\w)(:)(?=//)|(?<=\bwww)()(\.)|(\w)(@)(?=\w)", re.IGNORECASE)
ADDRESS = re.compile(r"(?<!\w)\w+://[^\s\"']+")  # sought only at beginnings of words: one may be very long
USER = re.compile(r"(?<!\w)(\w+://)[^\s/?#]*@")
PARAMETER = re.compile(r"([?&;#](?!(?:region|endpoint_override)=)(?:[\w.%-]+=)?)[^&?;#]+")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # not all readers let a backslash escape these


def printable(text: str) -> str:
    r"""Return text that cannot control a terminal, nor change the writing direction of the text around it.

    >>> printable("\x1b[31mred\n")
    '\ufffd[31mred\n'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in KEPT else "\N{REPLACEMENT CHARACTER}" for char in text)


def in_one_line(text: str) -> str:
    r"""Return printable text in one line, since names in a store may have line breaks and so imitate other lines.

    >>> in_one_line("a\nb")
    'a\\nb'
    """
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def indented(text: str) -> str:
    """Return text with all lines but the first indented, so that they do not look like lines around it."""
    return text.replace("\n", "\n  ")


def shortened(text: str, longest: int = 2_000) -> str:
    """Return text without the middle of each line that has more than `longest` characters.

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


def first_few(words: Sequence[str], most: int) -> str:
    """Return the first words of a list, and dots if it has more.

    >>> first_few(["a", "b", "c"], 2), first_few(["a", "b"], 2)
    ('a, b, ...', 'a, b')
    """
    return ", ".join([*words[:most], *(["..."] if len(words) > most else [])])


def is_text(text: str) -> bool:
    r"""Return whether text can be written as UTF-8; a file name with other bytes cannot.

    >>> is_text("caf\u00e9"), is_text("caf\udce9")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_markdown(text: str) -> str:
    """Return text that Markdown shows literally: no markup, no link, no HTML; line breaks stay.

    >>> as_markdown("a|b <c> [d](e)")
    'a\\\\|b &lt;c&gt; \\\\[d\\\\](e)'
    """
    shown = MARKUP.sub(r"\\\1", printable(text)).translate(ENTITIES)
    return LINKED.sub(_unlinked, shown)


def _unlinked(found: re.Match[str]) -> str:
    """Return a text that looks the same but is no link: its mark is written as a character reference."""
    *before, mark = (one for one in found.groups() if one is not None)
    return f"{''.join(before)}&#{ord(mark)};"


def masked(text: str) -> str:
    """Return text without what may be secret in its addresses: users, passwords, and parameters such as signatures.

    >>> masked("no answer from 'http://me:word@host:1/p?sig=word&x=word', s3://bucket/x?region=eu")
    "no answer from 'http://***@host:1/p?sig=***&x=***', s3://bucket/x?region=eu"
    """
    return ADDRESS.sub(lambda found: PARAMETER.sub(r"\1***", USER.sub(r"\1***@", found[0])), text)
