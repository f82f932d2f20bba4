"""Where two tokenizations of the same bytes agree."""
