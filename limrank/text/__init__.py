"""What a text holds: its words, its language, and which other text it repeats."""
