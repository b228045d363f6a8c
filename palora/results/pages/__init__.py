"""What people read: the report of a run, of a comparison and of a spectrum, as self-contained HTML."""
