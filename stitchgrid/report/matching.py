"""Sections on the best sources that a matcher finds: sanity checks within and across networks, and monotonicity."""

from functools import partial

from stitchgrid.report.content import Picture, Section, Verdict, make_table, share
from stitchgrid.report.figures import Cloud, draw_clouds
from stitchgrid.report.report_queries import Asker, Row, by_label

BEST = (
    "Best source: highest accuracy for trained stitchers, lowest residual for least-squares ones, by its own direction "
    "for an index; seeds of a matcher are averaged. A tie that includes the right layer is no violation (scores nearer "
    "than 1e-6 tie)."
)
GRID_COLUMNS = (
    "num_judged",
    "num_violations",
    "violation_share",
    "chance_share",
    "num_later",
    "num_earlier",
    "metric",
    "own_score",
    "best_score",
    "own_accuracy",
    "best_accuracy",
)
SELF = "source_model = target_model"
SEEDS = """
source_model <> target_model and exists (
    select 1 from models as f join models as g on g.sweep = f.sweep and g.architecture = f.architecture
                                              and g.args = f.args
                                              and g.is_untrained is not distinct from f.is_untrained
    where f.sweep = cells.sweep and f.model = source_model and g.model = target_model
)
"""


def sanity_within(ask: Asker) -> Section:
    """Return the section on whether every layer of a network is its own best source."""
    rows = ask.rows("paper_sanity_within")
    return Section(
        title="Is every layer its own best source?",
        rule=f"Within one network, the best source for a layer must be that layer. {BEST}",
        query="paper_sanity_within",
        verdicts=tuple(_verdict(row, "the layer itself") for row in rows),
        tables=(make_table("By matcher", rows, ("label", "num_networks", *GRID_COLUMNS)),),
        pictures=_preferred(ask) if rows else (),
        missing=""
        if rows
        else ask.missing((ask.plans(SELF), 'a network compared with itself: [grid] pairs = "within"')),
    )


def sanity_across(ask: Asker) -> Section:
    """Return the section on whether the best source in another seed's network is the corresponding layer."""
    rows = ask.rows("paper_sanity_across")
    wanted = 'two networks of one architecture compared: seeds = [0, 1] of a model, [grid] pairs = "across"'
    return Section(
        title="Is the corresponding layer of another seed the best source?",
        rule=f"Between two networks of one architecture, the best source for a layer must be the same layer. {BEST}",
        query="paper_sanity_across",
        verdicts=tuple(_verdict(row, "the corresponding layer") for row in rows),
        tables=(make_table("By matcher", rows, ("label", "num_pairs", *GRID_COLUMNS)),),
        missing="" if rows else ask.missing((ask.plans(SEEDS), wanted)),
    )


def monotonicity(ask: Asker) -> Section:
    """Return the section on whether near layers are more alike than far ones."""
    rows = ask.rows("paper_monotonicity")
    total = [row for row in rows if row["model"] == "(all)"]
    columns = ("label", "direction", "model", "num_triples", "num_violations", "violation_share", "conformity")
    wanted = 'three layers of a network compared with one another: [grid] pairs = "within"'
    return Section(
        title="Are near layers more alike than far ones?",
        rule="Of three layers of a network in order of execution, the first and the last must not be more alike than "
        "the first and the middle, nor than the middle and the last (layer monotonicity, Klabunde et al. 2025); "
        "scores nearer than 1e-6 tie. Forward: the earlier layer is the source. Conformity is the share of all "
        "comparisons that hold; each triple has two.",
        query="paper_monotonicity",
        verdicts=tuple(_monotone(label, group) for label, group in by_label(total).items()),
        tables=(make_table("By matcher, direction and network", rows, columns),),
        missing="" if rows else ask.missing((ask.plans(f"{SELF} and target_index > 1"), wanted)),
    )


def _monotone(label: str, rows: list[Row]) -> Verdict:
    counts = [f"{share(row['num_violations'], row['num_triples'])} triples {row['direction']}" for row in rows]
    violated = any(row["num_violations"] for row in rows)
    return Verdict(subject=label, text=f"violated in {' and '.join(counts)}", holds=not violated)


def _verdict(row: Row, right: str) -> Verdict:
    """Return how often the best source was another layer than the right one."""
    count = share(row["num_violations"], row["num_judged"])
    which = ""
    if row["num_violations"]:
        which = f": {row['num_later']} times a later one, {row['num_earlier']} times an earlier one"
    chance = f"by chance {100 * row['chance_share']:.0f} %"
    return Verdict(
        subject=row["label"],
        text=f"the best source is not {right} for {count} target layers ({chance}){which}",
        holds=not row["num_violations"],
    )


def _preferred(ask: Asker) -> tuple[Picture, ...]:
    """Return the figure of each target layer's best source, one plot per matcher."""
    layers = ask.sql("select model, layer, layer_index from layers where sweep = $sweep")
    index = {(row["model"], row["layer"]): row["layer_index"] for row in layers}
    judged = [row for row in ask.rows("diagonal_layers") if row["violation"] is not None and row["rank"] is None]
    clouds = [
        Cloud(
            title=label,
            x=[index[row["model"], row["target_layer"]] for row in rows],
            y=[index[row["model"], row["best_source_layer"]] for row in rows],
            groups=["another layer" if row["violation"] else "the layer itself" for row in rows],
        )
        for label, rows in by_label(judged).items()
    ]
    draw = partial(draw_clouds, clouds, x_label="target layer", y_label="best source layer", diagonal=True)
    caption = "The best source of each target layer; layers count from the input, larger marks are more networks."
    return (Picture(caption=caption, draw=draw),)
