"""The catalog: SQL views over a store, and the queries over them. DuckDB is imported only when a store is opened."""

from typing import TYPE_CHECKING, Any

from stitchgrid.catalog.query_files import Param, Question, list_questions, load_question
from stitchgrid.catalog.views import VIEWS

if TYPE_CHECKING:
    from stitchgrid.catalog.catalog import Catalog

__all__ = ["VIEWS", "Catalog", "Param", "Question", "list_questions", "load_question"]


def __getattr__(name: str) -> Any:
    if name != "Catalog":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stitchgrid.catalog.catalog import Catalog

    return Catalog
