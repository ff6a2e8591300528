"""Starting noise of sets whose particles differ from the start.

One file per method, which ends with what the method is (`method.py`). Each particle's own
distribution stays exactly standard normal; only the joint distribution of a set changes:

    antithetic  pairs (z, -z)
    simplex     pairwise correlation -1 / (B - 1), the smallest that B exchangeable particles have
    stratified  evenly spread quantiles along the directions in which the posterior varies most
    balanced    one of each of B equal groups of several times as many
    rivals/     methods that give up that distribution, there to be compared with
"""
