"""stitchgrid: do two neural networks compute the same thing, layer by layer?

>>> import stitchgrid as sg
>>> run = sg.launch("quickstart", store="grid", address="none")  # doctest: +SKIP
>>> run.answer(target="net/1", matcher="cka_unbiased")           # doctest: +SKIP
>>> sg.open("grid")["quickstart"].results().df()                 # doctest: +SKIP
>>> sg.measures.cka(x, y)                                        # doctest: +SKIP

Large libraries, such as torch, are only imported when they are used.
"""

from importlib import import_module

__version__ = "0.2.0"

__all__ = ["Grid", "Run", "__version__", "compare", "errors", "images", "launch", "measures", "open", "plan", "resume"]

_HOMES = {
    "Grid": "api.runs",
    "Run": "api.runs",
    "compare": "api.comparison",
    "errors": "errors",
    "images": "api.launches",
    "launch": "api.launches",
    "measures": "api.measures",
    "open": "api.runs",
    "plan": "api.launches",
    "resume": "api.launches",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stitchgrid' has no attribute {name!r}; it offers {', '.join(__all__)}")
    home = import_module(f"stitchgrid.{_HOMES[name]}")
    found = home if home.__name__.endswith(f".{name}") else getattr(home, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
