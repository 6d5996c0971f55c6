"""What backbones made of images, kept for whoever needs it next."""
