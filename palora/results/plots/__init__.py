"""The pictures. matplotlib is imported when the first one is drawn."""
