"""Answers as a list that a notebook shows."""

from stitchgrid.api.tables import html_table
from stitchgrid.catalog.answers import Answer, Check
from stitchgrid.catalog.missing_checks import in_short
from stitchgrid.errors import InputError
from stitchgrid.printable import in_one_line


class Answers(list[Answer]):
    """Answers, one for each target layer, source network and matcher.

    A list of exactly one answer also has the fields of that answer: `.best`, `.verdict` and so on.
    """

    @property
    def only(self) -> Answer:
        """The only answer.

        Raises:
            InputError: If there are several, or none.
        """
        if len(self) != 1:
            way_out = "name the target's layer, the source and the matcher" if self else "it is not computed yet"
            raise InputError(f"exactly one answer is wanted, got {len(self)}; {way_out}.")
        return self[0]

    @property
    def best(self) -> str:
        """The best source layer of the only answer."""
        return self.only.best

    @property
    def runner_up(self) -> str | None:
        """The second best source layer of the only answer; None where there is none."""
        return self.only.runner_up

    @property
    def margin(self) -> float | None:
        """How far the best layer is ahead of the second best; None where that is not known."""
        return self.only.margin

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval of the value; None where no intervals were asked for."""
        return self.only.interval

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks of the only answer."""
        return self.only.checks

    @property
    def verdict(self) -> str:
        """`supported`, `weak` or `not supported`."""
        return self.only.verdict

    @property
    def sentence(self) -> str:
        """The only answer in words."""
        return in_one_line(self.only.sentence)

    def __repr__(self) -> str:
        return "\n".join(in_short(self)) if self else "no answers"

    def _repr_html_(self) -> str:
        rows = (
            (
                f"{one.target_model} {one.target_layer}",
                f"{one.source_model} {one.source_layer}",
                one.label,
                one.verdict,
                f"{one.sentence} {one.why}".rstrip(),
            )
            for one in self
        )
        return html_table(("target", "best source", "matcher", "verdict", "what was found"), rows)
