import re
from html.parser import HTMLParser

import pytest
from helpers_store import make_synthetic_store

from stitchgrid.atlas import write_atlas
from stitchgrid.catalog import Catalog
from stitchgrid.errors import QueryError


@pytest.fixture
def catalog(tmp_path):
    synthetic = make_synthetic_store(tmp_path / "grid")
    with Catalog(synthetic.store) as opened:
        yield opened


def test_the_page_stands_alone_and_can_be_parsed(catalog, tmp_path):
    report = write_atlas(catalog, catalog.sweeps, tmp_path / "atlas.html")
    page = (tmp_path / "atlas.html").read_text()
    HTMLParser().feed(page)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?https?:", page)
    assert report.num_panels > 0
    assert catalog.sweeps[0] in page


def test_the_same_store_gives_the_same_page(catalog, tmp_path):
    for name in ("a.html", "b.html"):
        write_atlas(catalog, catalog.sweeps, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_missing_and_failed_cells_are_counted(catalog, tmp_path):
    report = write_atlas(catalog, catalog.sweeps, tmp_path / "atlas.html")
    counts = catalog.query("select status, count(*) as n from cells group by status").to_pylist()
    found = {row["status"]: row["n"] for row in counts}
    assert (report.num_missing, report.num_failed) == (found["pending"], found["failed"])
    assert report.num_missing > 0
    assert report.num_failed > 0


def test_figures_are_one_file_per_matcher_and_metric(catalog, tmp_path):
    report = write_atlas(catalog, catalog.sweeps, tmp_path / "atlas.html", figures=tmp_path / "figures")
    kinds = catalog.query("select count(distinct (matcher, params, seed, metric)) as n from results").to_pylist()[0][
        "n"
    ]
    assert len(report.figures) >= kinds
    assert all(path.read_bytes().startswith(b"%PDF") for path in report.figures)


def test_an_unknown_sweep_is_refused_with_the_known_ones(catalog, tmp_path):
    with pytest.raises(QueryError, match=r"no planned sweep 'nothing'.*known"):
        write_atlas(catalog, ["nothing"], tmp_path / "atlas.html")
