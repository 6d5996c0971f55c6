"""From an image reference to pixels: addresses, downloads, decoding."""
