"""The exceptions that the command line turns into one sentence instead of a traceback."""


class UserError(ValueError):
    """Something that the user can correct: the message says what was wrong, the value seen, and what to do."""


class WriteError(UserError):
    """A file cannot be written: no room, no permission. An earlier file in its place is untouched."""
