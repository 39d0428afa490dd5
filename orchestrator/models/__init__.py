"""Files of models and checkpoints, and the words that name them."""
