"""The one error channel: what is wrong, where, and how to fix it."""


class EdgewmError(Exception):
    """A fault the user can mend; the command line prints the three lines and exits 2.

    Anything else that escapes is a bug of edgewm's own and keeps its trace.
    """

    def __init__(self, what: str, where: str, fix: str):
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        return f"error: {self.what}\n  where: {self.where}\n  fix: {self.fix}"


def as_told(said: str, where: str, status: int) -> EdgewmError:
    """The three lines that edgewm-tick wrote, as an error; its status where it said nothing of the kind."""
    told = dict(line.strip().split(": ", 1) for line in said.splitlines() if ": " in line)
    if "error" in told:
        return EdgewmError(told["error"], told.get("where", where), told.get("fix", "build the bundle again"))
    return EdgewmError(f"edgewm-tick ended with status {status}", where, "build the bundle for this machine again")
