"""Facts and skills: questions with answers, plain text."""
