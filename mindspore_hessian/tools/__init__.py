"""What looks at training: the monitor, the diagnosis of a point, the audit of a function."""
