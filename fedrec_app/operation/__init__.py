"""What an operator watches a run with: audit log, status, logs, tracking, checks of a machine."""
