"""What a machine lacks, and what failed in a run."""
