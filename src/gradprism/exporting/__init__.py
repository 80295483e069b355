"""Route folders in the formats of other trainers."""
