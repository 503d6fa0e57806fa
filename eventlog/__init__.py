"""The event log: what is written and how. It knows streams and heads, never workflow code.

All of refold's SQL is in this package.
"""
