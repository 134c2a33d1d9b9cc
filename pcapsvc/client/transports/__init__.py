"""The ways by which messages reach the nodes, and events come back."""
