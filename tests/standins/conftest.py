"""Stand-ins are programs that tests start, no tests."""

collect_ignore_glob = ["*"]
