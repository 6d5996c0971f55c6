"""What measurements have in common: options and results, hosts of images, servers, load."""
