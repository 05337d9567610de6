"""Where the values of a sweep come from: job, data, versions, devices, flags and failures."""

import json
from typing import Any

from stitchgrid.catalog import Catalog

MOST_FAILURES = 50  # most kinds of errors that are listed
MOST_LETTERS = 600  # most letters of an error that are shown
RUNS = """
select version, data, device, precision, count(distinct cell_id) as num_cells,
       min(created_at) as first_at, max(created_at) as last_at
from results where sweep = $sweep group by all order by all
"""
FLAGS = """
select flag, count(distinct cell_id) as num_cells, string_agg(distinct matcher, ', ' order by matcher) as matchers
from (select cell_id, matcher, unnest(flags) as flag from results where sweep = $sweep) group by flag order by flag
"""
FAILURES = f"""
select status, left(error, {MOST_LETTERS}) as error, count(*) as num_cells,
       string_agg(distinct matcher, ', ' order by matcher) as matchers,
       min(source_model || ' ' || source_layer || ' -> ' || target_model || ' ' || target_layer) as example
from cells where sweep = $sweep and status in ('failed', 'quarantined')
group by all order by num_cells desc, error limit {MOST_FAILURES}
"""


def read_provenance(catalog: Catalog, sweep: str) -> dict[str, Any]:
    """Return the data of the page's view "Provenance": runs, flags, failures and the job."""
    tables = {"runs": RUNS, "flags": FLAGS, "failures": FAILURES}
    found = {name: catalog.query(sql, {"sweep": sweep}).to_pylist() for name, sql in tables.items()}
    return {**found, "job": json.dumps(catalog.job(sweep), indent=2, ensure_ascii=False)}
