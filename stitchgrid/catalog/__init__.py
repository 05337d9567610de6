"""The catalog: SQL views over a store, and the questions asked of them."""

from stitchgrid.catalog.catalog import Catalog
from stitchgrid.catalog.questions import Param, Question, list_questions, load_question
from stitchgrid.catalog.views import VIEWS

__all__ = ["VIEWS", "Catalog", "Param", "Question", "list_questions", "load_question"]
