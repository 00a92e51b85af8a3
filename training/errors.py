"""Errors a user of the command line can cause or mend. `training/__main__.py` prints one as a single line and exits 2.

A message names the thing, what was found, what was expected and the next step, and holds no line break.
"""


class UserError(Exception):
    """Base: something about the input, not a defect of ours. `str(error)` is the one line the user sees."""
