"""Webhooks: every delivery that a sender makes becomes one workflow, whose ID is the delivery's identity.

`post` declares it over a workflow, `signal` makes a delivery a message into one; `Delivery` is what both get. `asgi`
gives the endpoints as an app, to be mounted in any ASGI framework or served alone.
"""

from refold.connectors.webhook._asgi import asgi
from refold.connectors.webhook._declare import post, signal
from refold.connectors.webhook._delivery import Delivery
from refold.connectors.webhook._errors import SecretMissing
from refold.connectors.webhook._handshakes import echo
from refold.connectors.webhook._identity import cloudevents, field, header, idempotency_key
from refold.connectors.webhook._schemes import bearer, github, hmac, none, shopify, slack, standard, stripe
from refold.connectors.webhook._verify import Check, Verifier

__all__ = [
    "Check",
    "Delivery",
    "SecretMissing",
    "Verifier",
    "asgi",
    "bearer",
    "cloudevents",
    "echo",
    "field",
    "github",
    "header",
    "hmac",
    "idempotency_key",
    "none",
    "post",
    "shopify",
    "signal",
    "slack",
    "standard",
    "stripe",
]
