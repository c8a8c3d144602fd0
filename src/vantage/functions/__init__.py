"""Pure functions of tensors: no Context, no Trajectories, nothing of Vantage but the error classes.

    groups      statistics of a score within groups of rows
    whitening   mean, spread and standardising, over a mask or given a spread
    ratios      importance ratios, bounded
    surrogates  losses per decision of a policy and of a critic
    divergences estimates of KL(policy || reference) from samples
    returns     generalised advantage estimation, linear recurrences
    rows        between a value per row [N] and values per decision [N, T]
    quantiles   empirical quantiles and one step of their tracking
    masks       random sets of masked positions
    parameters  lists of tensors taken as one vector
    simplex     distributions that trade a gain against a divergence

In the docstrings N is rows, T decisions of the longest row, and a mask [N, T] is True where a decision counts; values
elsewhere, NaN included, change neither a value nor a gradient. Each function checks ranks and types on entry (`checks.py`):
with three arguments that takes 3 us, as one operation on a small tensor does, where jaxtyping with beartype took 33 us a call and
0.19 s more at import.
"""
