"""The manual, which travels with the package: one Markdown page for each topic."""

from pathlib import Path

from stitchgrid.errors import InputError, nearest

FOLDER = Path(__file__).parent

#: In the order in which they are listed; each is a page of that name.
TOPICS = (
    *("start", "python", "commands", "job", "networks", "data", "matchers", "evidence", "sql"),
    *("clusters", "stores", "performance", "findings", "how-it-works", "contributing", "security", "glossary"),
)


def page(topic: str) -> str:
    """Return the Markdown of a topic.

    >>> page("start").splitlines()[0]
    '# Start'

    Raises:
        InputError: If there is no such topic.
    """
    if topic not in TOPICS:
        raise InputError(f"the manual has no topic {topic!r}; {nearest(topic, TOPICS)}.")
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def summary(topic: str) -> str:
    """Return the line under the title of a topic: what its page tells."""
    return page(topic).splitlines()[2]


def overview() -> list[str]:
    """Return a line for each topic: its name and what it tells."""
    longest = max(map(len, TOPICS))
    return [f"{topic:{longest}}  {summary(topic)}" for topic in TOPICS]
