"""Labels and their images, from projects, exports and class folders."""
