"""
Coverage-guided fuzzing of the parsers of messages and of the configuration.

C{make fuzz}, or C{python -m tests.fuzz --help}.
"""
