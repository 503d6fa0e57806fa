"""What can be wrong with a declaration only when the program starts."""

from refold.core import RefoldError


class SecretMissing(RefoldError):
    """An environment variable that holds a secret is not set. Reaction: set it, where the program starts."""

    def __init__(self, where: str, variable: str) -> None:
        super().__init__(where, variable)
        self.where, self.variable = where, variable

    def __str__(self) -> str:
        return (
            f"{self.where}: its secret is to be in the environment variable {self.variable}, which is not set.\n"
            f"Set it where this program starts:  export {self.variable}=..."
        )
