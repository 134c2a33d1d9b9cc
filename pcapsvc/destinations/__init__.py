"""Where captures are delivered, one package for each kind of destination."""
