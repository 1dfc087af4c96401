"""Words and languages of texts, overlap between texts, and near-duplicates."""
