"""What a look at a server's folder finds."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

Level: TypeAlias = Literal["ok", "note", "wrong"]


@final
@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at.

    Attributes:
        level: Whether it is as it should be; what is worth knowing only is a note.
        what: It.
        words: What there is to say, with what to do if it is wrong.
    """

    level: Level
    what: str
    words: str

    def __str__(self) -> str:
        return f"{self.level:5}  {self.what}: {self.words}"
