"""A research bench beside the library: methods side by side, and the spectrum."""
