"""Methods that others published, and the reference thesis's: to be compared with."""
