"""Signs in a text that stand for an image, a video or a sound: without the column that held it they say nothing."""

import re
from collections.abc import Collection

from stages.formats.columns import normal
from stages.formats.format import Said
from stages.formats.readers.row import BadRow

MEDIA = ("image", "video", "audio")


class Placeholders:
    """The placeholders of columns that the user dropped (`columns: {image: null}`), taken out of requests: `<image>`,
    `<|image|>`, `<image 1>`. `rows` counts the rows that had some."""

    def __init__(self, dropped: Collection[str]):
        self.kinds = sorted({name for column in dropped if (name := normal(column).removesuffix("s")) in MEDIA})
        self.sign = re.compile(rf"<\|?({'|'.join(self.kinds)})[ _]?\d*\|?>") if self.kinds else None
        self.rows = 0

    def taken_out(self, said: Said) -> Said:
        """Return a row without these placeholders. Raises BadRow where a turn was nothing else."""
        sign = self.sign
        if sign is None or not any(sign.search(turn["content"]) for turn in said.messages):
            return said
        self.rows += 1

        def cleaned(text: str, role: str) -> str:
            if role == "answer" or not sign.search(text):
                return text
            if not (rest := sign.sub("", text).strip()):
                raise BadRow("", f"a turn is {text.strip():.40}, and nothing else: its column is left out")
            return rest

        return said.rewritten(cleaned)

    def remarks(self) -> list[str]:
        """Return what a user should know of this."""
        signs = " and ".join(f"<{kind}>" for kind in self.kinds)
        return [f"{self.rows:,} rows had {signs} in their text: taken out, as its column is"] if self.rows else []
