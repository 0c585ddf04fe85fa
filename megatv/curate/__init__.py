"""Raw video to examples: find shots, choose clips, cut them to segments, drop what teaches nothing."""
