"""The C++ kernels if their folder is there, and which path layers take. The method asks for kernels only here."""

try:
    from . import native

    if not native.__spec__.has_location:  # only a __pycache__ is left of the folder: Python makes it an empty package
        native = None
except ImportError:  # the folder may be missing: plain operations compute the same
    native = None


def chosen_path() -> str:
    """How layers that are created now compute, in a phrase for the log."""
    return native.chosen_path() if native else "plain operations (src/binary/native is not there)"
