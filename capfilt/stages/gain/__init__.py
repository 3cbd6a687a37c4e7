"""What bootstrapping was worth: equal models, trained alike on what a run's texts could have been."""
