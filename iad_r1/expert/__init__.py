"""Expert-AD, built: from pictures with labels and masks to chains of thought to train on."""
