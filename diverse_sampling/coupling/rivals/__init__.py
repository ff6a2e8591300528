"""Starting noise that is no longer standard normal: to be compared with."""
