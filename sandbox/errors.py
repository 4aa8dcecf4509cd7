"""The one exception of this room: a jail, or the ground for jails, could not be set up."""


class SandboxError(RuntimeError):
    """Set-up failed through no fault of the jailed code. Never retried here; never billed.

    Attributes:
        remedy: what a person types or changes next; empty when nothing is known.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message if not remedy else f"{message}. Next: {remedy}")
        self.remedy = remedy
