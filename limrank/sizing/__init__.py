"""What a run will take: its units and tokens, and from measured rates its time and its cost."""
