"""Where the commands find a broker that nobody has named: the one that `refold dev` runs in this project."""

from typing import Final

from refold.core.cli import project_folder

BOOTSTRAP: Final = "REFOLD_KAFKA_BOOTSTRAP"
ADDRESS_FILE: Final = "broker-address"


def find_dev_address() -> str | None:
    """Return the address of the broker that `refold dev` runs in this project; None when none does."""
    file = project_folder() / ADDRESS_FILE
    return file.read_text().strip() if file.exists() else None


__all__ = ["ADDRESS_FILE", "BOOTSTRAP", "find_dev_address"]
