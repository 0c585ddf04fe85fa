"""Data: videos become clips, clips become shards, shards become sequences and batches."""
