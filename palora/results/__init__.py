"""What came of it: measured, exported, shown."""
