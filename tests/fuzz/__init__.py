"""
Coverage-guided fuzzing of what reads the words of others: messages, and the configuration.

C{make fuzz}, or C{python -m tests.fuzz --help}.
"""
