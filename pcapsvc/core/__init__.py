"""What the service decides, with no I/O: values in, values out."""
