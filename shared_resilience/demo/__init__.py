"""The demo: a fleet of real processes, a real upstream with a quota of its own, and a Redis that goes away.

It needs the extra `demo`. Only `command_line` and `plan` may be imported without it.
"""
