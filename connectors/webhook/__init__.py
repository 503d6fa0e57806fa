"""Webhooks: every delivery that a sender makes becomes one workflow, whose ID is the delivery's identity."""

from refold.connectors.webhook._errors import SecretMissing
from refold.connectors.webhook._schemes import bearer, github, hmac, none, shopify, slack, standard, stripe
from refold.connectors.webhook._verify import Check, Verifier

__all__ = [
    "Check",
    "SecretMissing",
    "Verifier",
    "bearer",
    "github",
    "hmac",
    "none",
    "shopify",
    "slack",
    "standard",
    "stripe",
]
