"""What trains, samples, measures and records, between the command lines and the library."""
