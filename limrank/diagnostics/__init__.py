"""What a machine lacks (doctor), and what failed in a run (failures)."""
