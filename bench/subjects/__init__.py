"""What is measured on: versions, photos, sets of labelled images."""
