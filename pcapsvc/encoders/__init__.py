"""From a recording to the bytes of the file that is delivered, one module for each format."""
