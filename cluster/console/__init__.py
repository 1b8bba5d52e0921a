"""The ``stillhouse`` command: one front door to every stage and command."""
