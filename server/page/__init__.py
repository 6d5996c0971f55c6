"""The page at / and the reports of versions."""
