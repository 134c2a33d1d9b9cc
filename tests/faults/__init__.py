"""Whatever goes wrong: nothing that was captured is lost, and nothing is left behind."""
