"""The small world of docs/world.md: drawings, texts, noise, models, and the grid on them."""
