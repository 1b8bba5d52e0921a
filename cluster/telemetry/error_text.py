"""The message of an exception, or the output of a program, on one line."""

_MOST_CHARACTERS = 300


def one_line(error: BaseException) -> str:
    """The whole message, without its final period; the name of the class where there is no message."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line that is not blank, cut to 300 characters, for messages of libraries that run on for pages."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:_MOST_CHARACTERS].rstrip(".")


def last_line(text: str, absent: str = "no reason given") -> str:
    """The last line that is not blank, where programs give the reason of a failure; ``absent`` if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), absent)
