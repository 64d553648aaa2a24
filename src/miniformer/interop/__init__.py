"""Import from and export to other programs: Hugging Face, lm-evaluation-harness."""
