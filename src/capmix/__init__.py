"""capmix: caption an image-text pool, mix synthetic captions with raw text, and prove it helps."""
