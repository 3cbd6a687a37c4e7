"""What people see of a run: progress while it works, a summary afterwards."""
