"""`--device`: `local`, or `ssh://[user@]host[:port]` where host is any name that the user's own ssh knows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import EdgewmError

LOCAL = "local"
PATTERN = re.compile(
    r"ssh://(?:(?P<user>[^@:/\s-][^@:/\s]*)@)?"
    r"(?P<host>\[[\w:.%]+\]|[^@:/\s\[\]-][^@:/\s\[\]]*)(?::(?P<port>\d{1,5}))?/?"
)


@dataclass(frozen=True)
class Address:
    """A host for ssh; user and port are None where the user's configuration decides."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    @property
    def words(self) -> list[str]:
        """What ssh takes."""
        port = ["-p", str(self.port)] if self.port else []
        return [*port, "--", f"{self.user}@{self.host}" if self.user else self.host]

    @property
    def by_hand(self) -> str:
        """The line a person types."""
        return " ".join(["ssh", *(word for word in self.words if word != "--")])


def parse_address(text: str) -> Address | None:
    """None for `local`. EdgewmError for anything that is neither that nor an address."""
    if text == LOCAL:
        return None
    match = PATTERN.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 0 < port < 65536):
        raise EdgewmError(f"{text!r} is no device", "--device", "write local, ssh://user@host or ssh://user@host:port")
    return Address(match["host"].strip("[]"), match["user"], port)
