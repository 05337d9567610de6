"""The prompt of `stitchgrid sql`: lines with a history, colours and completion, read by prompt_toolkit."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from os import environ
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer

from stitchgrid.catalog import list_questions
from stitchgrid.cli.output import say, say_problem
from stitchgrid.cli.session import Session
from stitchgrid.errors import StitchgridError

PROMPT, MORE = "stitchgrid> ", "        ... "
WORD = re.compile(r"[\w.@/:-]+")


class SessionCompleter(Completer):
    """Completes SQL with keywords and the names of a store, and completes dot commands."""

    def __init__(self, session: Session):
        self._session = session

    @cached_property
    def _sql(self) -> Completer:
        """Made at the first completion, because reading the store takes longer than showing the prompt."""
        return _completer(self._session.words(), ignore_case=True)

    @cached_property
    def _dots(self) -> Completer:
        return _completer({name: what for name, (what, _) in self._session.commands.items()})

    @cached_property
    def _questions(self) -> Completer:
        return _completer({known.name: known.question for known in list_questions()})

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield completions for the text before the cursor."""
        text = document.text_before_cursor.lstrip()
        if not text.startswith("."):
            chosen = self._sql
        elif " " not in text:
            chosen = self._dots
        else:
            chosen = self._questions if text.startswith((".ask", ".questions")) else self._sql
        yield from chosen.get_completions(document, complete_event)


def _completer(words: Mapping[str, str], *, ignore_case: bool = False) -> Completer:
    return WordCompleter(list(words), meta_dict=words, ignore_case=ignore_case, pattern=WORD)


def history_of_user() -> History:
    """Return the history of statements, kept in the user's state folder; in memory if that cannot be written."""
    home = environ.get("XDG_STATE_HOME") or (environ.get("HOME") and f"{environ['HOME']}/.local/state")
    if not home:
        return InMemoryHistory()
    path = Path(home) / "stitchgrid" / "sql_history"
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return FileHistory(path)
    return InMemoryHistory()


def prompt(session: Session, history: History | None = None) -> None:
    """Read and run statements until Ctrl-D; an error is printed, and the prompt continues.

    Enter runs a complete statement, else it starts another line. Ctrl-C discards what was typed.
    """
    keys = KeyBindings()

    @keys.add("enter", filter=Condition(lambda: Session.is_complete(asking.default_buffer.text)))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    asking: PromptSession[str] = PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=MORE,
        key_bindings=keys,
        history=history or history_of_user(),
        lexer=PygmentsLexer(SqlLexer),
        completer=SessionCompleter(session),
        auto_suggest=AutoSuggestFromHistory(),
        complete_while_typing=False,
    )
    say(
        'SQL over the views results, answers, pairs, cells, models, layers; end with ";". .help lists more commands.',
        err=True,
    )
    while True:
        try:
            session.run(asking.prompt())
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        except StitchgridError as problem:
            say_problem(problem)
