"""refold: an event-sourced workflow engine for Python."""
