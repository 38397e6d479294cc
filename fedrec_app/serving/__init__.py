"""What a node serves by itself: a model file, its own data, private rows and feedback; it never calls home."""
