"""Labels of the classes, from ImageNet or from a file."""
