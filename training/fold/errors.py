"""What can go wrong before or after folding. A BatchNormalization that cannot be folded is no error: that is a Refusal.

FoldError                 one line: the thing, what was found, what was expected, the next step
└── ModelFileError        the file: missing, damaged, inconsistent, or not writable
"""


class FoldError(Exception):
    """The model could not be worked on. `str(error)` is one line."""


class ModelFileError(FoldError):
    """A model file could not be read or written; the line begins with its path."""
