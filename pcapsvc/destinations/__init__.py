"""Where captures go."""
