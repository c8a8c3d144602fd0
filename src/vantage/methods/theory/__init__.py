"""Methods with guarantees, on tabular MDPs."""
