"""The expert, the protection, the injection of the facts."""
