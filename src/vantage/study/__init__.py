"""Study: comparisons of methods, with statistics and a report."""
