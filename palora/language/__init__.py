"""A model and its words: load, find matrices, prompt, generate, score, and what is to be kept."""
