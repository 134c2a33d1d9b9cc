"""From a plan to a recording: the packets themselves."""
