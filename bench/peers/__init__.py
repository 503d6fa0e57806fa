"""The programs that are measured, each a process of its own; `_protocol` is how the bench speaks with them.

Nothing in here may import anything but the standard library and the system that the file is about: the
peers run in different virtual environments.
"""
