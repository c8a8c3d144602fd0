"""Compare methods, with statistics and a report."""
