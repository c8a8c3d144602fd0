"""Where prompts and initial states come from, and what is a good outcome."""
