"""How good a version is, and whether more labels would help."""
