"""What a run saves, where, and how it is resumed, inspected and exported."""
