"""How ``--help`` looks: what people copy from it stays in one piece."""

import argparse
import textwrap


class HelpFormatter(argparse.HelpFormatter):
    """Breaks no name at a hyphen, and the line that begins with ``example`` not at all."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example"):
            return indent + text
        return "\n".join(indent + line for line in self._split_lines(text.replace("``", ""), width))
