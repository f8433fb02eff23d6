"""Training as the two papers train: recipes, data, and the trainer behind `python -m inception_kernels train`."""
