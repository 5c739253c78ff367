"""The exceptions that an entry point turns into a sentence instead of a traceback."""


class UserError(ValueError):
    """Something that the user can fix: the message tells what was wrong, the value seen, and what to do."""


class WriteError(UserError):
    """A file cannot be written: no room, no permission. An earlier file of that name is unchanged."""
