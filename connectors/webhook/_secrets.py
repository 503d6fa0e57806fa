"""Secrets: given as they are, or by the name of an environment variable; several of them for a rotation."""

import base64
import binascii
import os
from collections.abc import Sequence
from typing import Final

from refold.connectors.webhook._errors import SecretMissing
from refold.core import DefinitionRefused

Secret = str | Sequence[str]

_FROM_ENVIRONMENT: Final = "env:"


def check_secrets(where: str, secrets: Secret) -> tuple[str, ...]:
    """Return the secrets as they were given. Raises DefinitionRefused when there is none, or an empty one."""
    given = (secrets,) if isinstance(secrets, str) else tuple(secrets)
    if not given or not all(isinstance(each, str) and each.removeprefix(_FROM_ENVIRONMENT) for each in given):
        raise DefinitionRefused(
            where,
            "it has no secret, or an empty one",
            'Give secret="env:NAME" (read when the program starts), or several in a list while they are rotated.',
        )
    return given


def variables_of(secrets: Sequence[str]) -> list[str]:
    """Return the environment variables that hold some of `secrets`."""
    return [each.removeprefix(_FROM_ENVIRONMENT) for each in secrets if each.startswith(_FROM_ENVIRONMENT)]


def resolve_secrets(where: str, secrets: Sequence[str]) -> list[str]:
    """Return the secrets themselves. Raises SecretMissing, which names the variable and never a value."""
    found = []
    for each in secrets:
        if each.startswith(_FROM_ENVIRONMENT):
            variable = each.removeprefix(_FROM_ENVIRONMENT)
            value = os.environ.get(variable, "").strip()
            if not value:
                raise SecretMissing(where, variable)
            found.append(value)
        else:
            found.append(each)
    return found


def decode_base64(where: str, secret: str) -> bytes:
    """Return the bytes of a base64 secret, padded or not. Raises DefinitionRefused, without the secret in it."""
    try:
        key = base64.b64decode(secret + "=" * (-len(secret) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise DefinitionRefused(
            where, "its secret is not base64", "Copy it whole, as the sender's settings show it."
        )
    return key
