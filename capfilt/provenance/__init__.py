"""What is known of a run and how it is kept: its folder, its committed rows, its policies, its catalog."""
