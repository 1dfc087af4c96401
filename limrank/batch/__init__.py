"""What runs units of work durably: plan, chunks, workers, budget, receipts, run directory."""
