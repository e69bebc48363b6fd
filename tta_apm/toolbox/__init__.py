"""What methods of test-time adaptation share, for ours and for those of others."""
