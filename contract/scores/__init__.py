"""What stochastic passes say of an image, and the rankings made of it."""
