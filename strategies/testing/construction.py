"""Checks of how a strategy is made, from options, settings and roster."""

from __future__ import annotations

import inspect
from typing import Any

from fedrec_app.conformance import check, giving, require
from fedrec_app.errors import ConfigError
from strategies.rollcall import Roster
from strategies.settings import Settings
from strategies.testing.harness import Make

_RIGHT = "def __init__(self, options=None, settings=Settings(), roster=None)"


@check
def check_constructor(make: Make) -> None:
    """The class is made as a run makes it, from options, settings and a roster, and each option has a default."""
    found: Any = make if isinstance(make, type) else None
    if found is None:
        with giving("the kit's factory"):
            found = type(make())
    fields = found.Options.model_fields
    lacking = [name for name, field in fields.items() if field.is_required()]
    require("they have no default, and a run that sets no options fails" if lacking else "", f"the options {lacking}")
    settings, roster = Settings(seed=5, fraction_train=0.5), Roster("", "")
    called = f"{found.__name__}(options, settings, roster), as a run makes it"
    try:
        inspect.signature(found).bind({}, settings, roster)
    except TypeError as error:
        takes = f"__init__ takes {inspect.signature(found)} ({error})"
        require(f"{takes}: it must be {_RIGHT} and hand all three to super().__init__", called)
    with giving(called):
        made = found({} if found is make else make().options.model_dump(), settings, roster)
    kept = made.settings == settings and made.roster is roster
    require("" if kept else f"settings or roster got lost: {_RIGHT} hands all three to super().__init__", called)


@check
def check_unknown_option(make: Make) -> None:
    """An option that the strategy does not have is refused by name."""
    try:
        type(make())({"no_such_option": 1})
    except ConfigError as error:
        require("" if "no_such_option" in str(error) else f"the error is {error}", "the option no_such_option")
        return
    require("it was accepted", "the option no_such_option")
