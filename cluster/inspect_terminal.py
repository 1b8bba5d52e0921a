"""Texts as a terminal shows them: how many columns they take, and what must not reach it."""

import unicodedata


def safe(text: str) -> str:
    """A text without anything a terminal would act on."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else ascii(character)[1:-1]
        for character in text
    )


def width_of(text: str) -> int:
    """Columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def cut(text: str, width: int) -> str:
    """At most so many columns of a text."""
    if width_of(text) <= width:
        return text
    while width_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def padded(text: str, width: int, left: bool = True) -> str:
    """A text with blanks behind it, or before it, up to so many columns."""
    blank = " " * max(0, width - width_of(text))
    return text + blank if left else blank + text


def fitted(text: str, width: int) -> list[str]:
    """A text in lines; only a word that is longer than a line is cut, paths are not cut at their hyphens."""
    lines, line = list[str](), ""
    for word in text.split():
        if line and width_of(line) + 1 + width_of(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
        while width_of(line) > width:
            start = cut(line, width + 1)[:-1]
            lines.append(start)
            line = line[len(start) :]
    return [*lines, line] if line else lines
