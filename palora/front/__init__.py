"""A recipe in, folders out."""
